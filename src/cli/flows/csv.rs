//! A line of CSV (RFC 4180) to its fields.
#![forbid(unsafe_code)]

use super::FlowsError;
use super::line::{FIELDS, Fields, Malformed, NEEDED};
use csv::{ReaderBuilder, StringRecord, Trim};
use std::borrow::Cow;

/// The first line: which column holds which field.
#[derive(Debug)]
pub struct Header {
    /// By column, the index in [`FIELDS`], if it is one of them.
    columns: Vec<Option<usize>>,
    /// The line that was read last.
    record: StringRecord,
}

impl Header {
    /// Reads the names of the columns.
    ///
    /// # Errors
    /// [`FlowsError::Header`] if a field that every flow needs has none, [`FlowsError::HeaderTwice`]
    /// if one has two.
    pub fn parse(file: &str, line: &[u8]) -> Result<Header, FlowsError> {
        let mut record = StringRecord::new();
        // Not text, so that nothing in it is a name.
        let _ = split(line, &mut record);
        let index = |name: &str| FIELDS.iter().position(|field| *field == name);
        let columns: Vec<Option<usize>> = record.iter().map(index).collect();
        for (index, field) in FIELDS.iter().enumerate() {
            let file = || file.to_owned();
            match columns.iter().filter(|column| **column == Some(index)).count() {
                0 if index < NEEDED => {
                    return Err(FlowsError::Header { file: file(), missing: field });
                }
                0 | 1 => {}
                _ => return Err(FlowsError::HeaderTwice { file: file(), field }),
            }
        }
        Ok(Header { columns, record })
    }

    /// Reads the fields of a further line; those that are empty count as absent.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn fields(&mut self, line: &[u8]) -> Result<Fields<'_>, Malformed> {
        split(line, &mut self.record)?;
        let (found, expected) = (self.record.len(), self.columns.len());
        if found != expected {
            return Err(Malformed::Columns { found, expected });
        }
        let mut fields = Fields::default();
        for (value, column) in self.record.iter().zip(&self.columns) {
            if let Some(column) = *column
                && !value.is_empty()
            {
                fields[column] = Some(Cow::Borrowed(value));
            }
        }
        Ok(fields)
    }
}

/// Splits one line. A flow is one line: its number is then what an editor shows, which a reader of
/// whole records cannot tell.
fn split(line: &[u8], record: &mut StringRecord) -> Result<(), Malformed> {
    record.clear();
    let text = std::str::from_utf8(line).map_err(|_| Malformed::Encoding)?;
    if text.contains('"') {
        let mut reader = ReaderBuilder::new().has_headers(false).trim(Trim::All).from_reader(line);
        reader.read_record(record).map_err(|_| Malformed::Encoding)?;
    } else {
        text.split(',').for_each(|field| record.push_field(field.trim()));
    }
    Ok(())
}
