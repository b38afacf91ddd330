//! A line of NDJSON to its fields.
#![forbid(unsafe_code)]

use super::line::{FIELDS, Fields, Malformed};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// Reads the fields of the object on one line; those that are null count as absent.
///
/// # Errors
/// [`Malformed::Json`].
pub fn fields(line: &[u8]) -> Result<Fields<'_>, Malformed> {
    let object: Object<'_> = serde_json::from_slice(line).map_err(|error| {
        // The number of the line within the line helps nobody.
        let text = error.to_string();
        let text = text.split(" at line 1 column ").next().unwrap_or_default();
        Malformed::Json(text.to_owned())
    })?;
    Ok(object.0)
}

struct Object<'a>(Fields<'a>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the fields of a flow")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(Text(key)) = map.next_key::<Text<'_>>()? {
            match FIELDS.iter().position(|field| *field == key) {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(index) => {
                    let Scalar(value) = map.next_value().map_err(|error| {
                        A::Error::custom(format_args!("{}: {error}", FIELDS[index]))
                    })?;
                    fields[index] = value;
                }
            }
        }
        Ok(Object(fields))
    }
}

/// A string that is borrowed unless it holds escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_str(ScalarVisitor)? {
            Scalar(Some(text)) => Ok(Text(text)),
            Scalar(None) => Err(D::Error::custom("expected a string")),
        }
    }
}

/// A string, a number or null.
struct Scalar<'a>(Option<Cow<'a, str>>);

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a number")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Scalar<'de>, E> {
        Ok(Scalar(Some(Cow::Borrowed(text))))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar<'de>, E> {
        Ok(Scalar(Some(Cow::Owned(text.to_owned()))))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar<'de>, E> {
        Ok(Scalar(Some(Cow::Owned(number.to_string()))))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar<'de>, E> {
        Ok(Scalar(Some(Cow::Owned(number.to_string()))))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Scalar<'de>, E> {
        // With its point, so that it is seen to be no whole number.
        Ok(Scalar(Some(Cow::Owned(format!("{number:?}")))))
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar<'de>, E> {
        Ok(Scalar(None))
    }
}
