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

    /// Puts `count` targets at `first`, and those from there on behind them. `named`, in ascending
    /// order, are those that have a name, counted from `first`; the others have none.
    pub fn insert<'a>(
        &mut self,
        first: u32,
        count: u32,
        named: impl Iterator<Item = (usize, &'a str)>,
    ) {
        let at = self.runs.partition_point(|run| run.first < first);
        let behind = self.runs.split_off(at);
        let before = self.runs.last().map_or(Default::default(), |run| (run.name, run.label));
        self.push(first, Span::default(), Span::default());
        for (index, name) in named {
            let Some(name) = self.text.keep(name) else { break };
            self.push(first + index as u32, name, Span::default());
            self.push(first + index as u32 + 1, Span::default(), Span::default());
        }
        self.push(first + count, before.0, before.1);
        for Run { first, name, label } in behind {
            if self.runs.last().is_some_and(|last| last.first == first + count) {
                self.runs.pop();
            }
            self.push(first + count, name, label);
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
    fn what_is_inserted_pushes_the_rest_back() {
        let mut text = Text::default();
        let [a, b] = ["a", "b"].map(|name| text.keep(name).expect("room"));
        let mut names = Names::new(text);
        names.push(0, a, Span::default());
        names.push(4, b, Span::default());
        let called = |names: &Names, last: u32| -> Vec<_> {
            (0..last).map(|id| names.of(TargetId(id)).0.unwrap_or("-").to_owned()).collect()
        };
        assert_eq!(called(&names, 6).concat(), "aaaabb");
        let mut at_a_boundary = names.clone();
        at_a_boundary.insert(4, 4, [(1, "x"), (2, "y")].into_iter());
        assert_eq!(called(&at_a_boundary, 10).concat(), "aaaa-xy-bb");
        names.insert(2, 3, [(0, "x"), (2, "x")].into_iter());
        assert_eq!(called(&names, 9).concat(), "aax-xaabb");
        let mut nobody = Names::default();
        nobody.insert(0, 2, [(1, "x")].into_iter());
        assert_eq!(called(&nobody, 3).concat(), "-x-");
    }

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
