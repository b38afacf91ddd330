//! What targets were called: names and labels, a million of them in one piece of memory.
#![forbid(unsafe_code)]

use crate::probe::TargetId;

/// A stretch of a [`Text`]; empty for "none".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    start: u32,
    len: u16,
}

/// All names and labels, one behind the other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Text {
    octets: String,
    last: Span,
}

impl Text {
    /// Keeps `text`, once if it is what was kept last; `None` if there is no more room (4 GiB).
    pub fn keep(&mut self, text: &str) -> Option<Span> {
        // Lists are often sorted by label.
        if self.get(self.last) != Some(text) {
            let span = Span {
                start: u32::try_from(self.octets.len()).ok()?,
                len: u16::try_from(text.len()).ok()?,
            };
            self.octets.push_str(text);
            self.last = span;
        }
        Some(self.last)
    }

    /// Returns what was kept; `None` for nothing.
    pub fn get(&self, span: Span) -> Option<&str> {
        let start = span.start as usize;
        self.octets.get(start..start + usize::from(span.len)).filter(|text| !text.is_empty())
    }
}

/// The names and labels that targets were given under: one entry for all targets of a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    text: Text,
    /// Ascending by first target; each holds up to the next.
    runs: Vec<Run>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    first: u32,
    name: Span,
    label: Span,
}

impl Names {
    /// Begins with what was kept while the targets were read.
    pub fn new(text: Text) -> Names {
        Names { text, runs: Vec::new() }
    }

    /// Returns the host name and the label that a target was given under.
    pub fn of(&self, target: TargetId) -> (Option<&str>, Option<&str>) {
        let after = self.runs.partition_point(|run| run.first <= target.0);
        match after.checked_sub(1).and_then(|index| self.runs.get(index)) {
            Some(run) => (self.text.get(run.name), self.text.get(run.label)),
            None => (None, None),
        }
    }

    /// Returns every name, and every label.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&str>, Option<&str>)> {
        self.runs.iter().map(|run| (self.text.get(run.name), self.text.get(run.label)))
    }

    /// Says what the targets from `first` on are called.
    pub fn push(&mut self, first: u32, name: Span, label: Span) {
        // A million plain addresses in a file are one run.
        let is_new = match self.runs.last() {
            Some(last) => (last.name, last.label) != (name, label),
            None => (name, label) != Default::default(),
        };
        if is_new {
            self.runs.push(Run { first, name, label });
        }
    }

    /// Gives back the memory that was taken in reserve.
    pub fn shrink(&mut self) {
        self.text.octets.shrink_to_fit();
        self.runs.shrink_to_fit();
    }

    /// Returns the octets that names and labels take.
    pub fn memory(&self) -> u64 {
        (self.text.octets.capacity() + self.runs.capacity() * size_of::<Run>()) as u64
    }

    /// How many stretches of targets are called differently.
    #[cfg(test)]
    pub fn runs(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_kept_as_it_was() {
        let mut text = Text::default();
        let spans: Vec<Span> =
            ["rack 1", "rack 1", "é", "rack 1"].iter().filter_map(|t| text.keep(t)).collect();
        assert_eq!(spans[0], spans[1]);
        let kept: Vec<_> = spans.iter().map(|span| text.get(*span)).collect();
        assert_eq!(kept, [Some("rack 1"), Some("rack 1"), Some("é"), Some("rack 1")]);
        assert_eq!(text.get(Span::default()), None);
        assert_eq!(text.keep(&"a".repeat(70_000)), None);
    }
}
