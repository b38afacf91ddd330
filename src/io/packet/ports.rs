//! Which of our ports the receiving filter lets in: few ranges that cover them all.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

/// Most ranges: three instructions each, once per address family, in a program of at most 4,096.
const MOST: usize = 64;

/// A few ranges of ports. Where there would be too many, the nearest are joined: what is let in
/// beside costs a look-up in the flow table, and no more.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortRanges(Vec<RangeInclusive<u16>>);

impl PortRanges {
    /// Covers all of `ranges`, with the narrowest gaps closed until at most 64 are left.
    pub fn covering(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        let mut wanted = vec![false; 1 << 16];
        for range in ranges {
            wanted[usize::from(*range.start())..=usize::from(*range.end())].fill(true);
        }
        let mut separate: Vec<RangeInclusive<u16>> = Vec::new();
        for port in (0..=u16::MAX).filter(|&port| wanted[usize::from(port)]) {
            match separate.last_mut() {
                Some(last) if last.end() + 1 == port => *last = *last.start()..=port,
                _ => separate.push(port..=port),
            }
        }
        let gap = |index: usize| separate[index + 1].start() - separate[index].end();
        let mut gaps: Vec<usize> = (0..separate.len().saturating_sub(1)).collect();
        gaps.sort_by_key(|&index| std::cmp::Reverse(gap(index)));
        gaps.truncate(MOST - 1);
        gaps.sort_unstable();
        let mut joined = Vec::with_capacity(gaps.len() + 1);
        let mut first = 0;
        for last in gaps.into_iter().chain(separate.len().checked_sub(1)) {
            joined.push(*separate[first].start()..=*separate[last].end());
            first = last + 1;
        }
        PortRanges(joined)
    }

    /// Returns the ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &RangeInclusive<u16>> {
        self.0.iter()
    }
}

impl From<RangeInclusive<u16>> for PortRanges {
    fn from(range: RangeInclusive<u16>) -> Self {
        PortRanges::covering([range])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(ports: impl IntoIterator<Item = RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
        PortRanges::covering(ports).0
    }

    #[test]
    fn neighbours_are_joined() {
        assert_eq!(ranges([]), []);
        assert_eq!(ranges([5..=5, 7..=7, 6..=6, 9..=9]), [5..=7, 9..=9]);
        assert_eq!(ranges([0..=0, u16::MAX..=u16::MAX]), [0..=0, u16::MAX..=u16::MAX]);
        assert_eq!(ranges([0..=u16::MAX, 7..=7]), [0..=u16::MAX]);
    }

    #[test]
    fn the_nearest_are_joined_when_there_are_too_many() {
        let far = (0..70u16).map(|n| n * 900..=n * 900);
        let near = (0..70u16).map(|n| n * 900 + 2..=n * 900 + 2);
        let joined = ranges(far.chain(near));
        assert_eq!(joined.len(), MOST);
        assert!(joined.iter().all(|range| range.end() - range.start() >= 2), "{joined:?}");
    }

    proptest! {
        #[test]
        fn covers_all_with_few(ports in prop::collection::vec(any::<u16>(), 0..300)) {
            let covering = PortRanges::covering(ports.iter().map(|&port| port..=port));
            prop_assert!(covering.0.len() <= MOST);
            prop_assert!(ports.iter().all(|port| covering.iter().any(|range| range.contains(port))));
            prop_assert!(covering.0.windows(2).all(|pair| pair[0].end() < pair[1].start()));
        }
    }
}
