//! Stamps: when a run began, in UTC, as `20261126T091500Z`. The order of texts is the order of runs.
//!
//! A second run of the same second gets `20261126T091500Z-02`, and so on up to 99.

use std::fmt;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

const FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");
/// Most runs of one lane that begin in one second.
pub(crate) const SAME_SECOND_MAX: u8 = 99;

/// The name of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(String);

impl Stamp {
    /// Of a run that begins at a time; `nth` counts from 1 those of one second.
    ///
    /// # Panics
    /// For a year past 9999.
    pub(crate) fn at(time: OffsetDateTime, nth: u8) -> Stamp {
        let second = time.to_offset(time::UtcOffset::UTC).format(FORMAT);
        let second = second.expect("a year of four digits can be written");
        Stamp(match nth {
            0 | 1 => second,
            nth => format!("{second}-{nth:02}"),
        })
    }

    /// A text that is a stamp.
    pub fn parse(text: &str) -> Option<Stamp> {
        let (second, nth) = match text.split_once('-') {
            None => (text, None),
            Some((second, nth)) => (second, Some(nth)),
        };
        let bytes = second.as_bytes();
        let shaped = bytes.len() == 16
            && bytes.iter().enumerate().all(|(place, byte)| match place {
                8 => *byte == b'T',
                15 => *byte == b'Z',
                _ => byte.is_ascii_digit(),
            });
        let counted = nth.is_none_or(|nth| {
            nth.len() == 2
                && nth
                    .parse::<u8>()
                    .is_ok_and(|nth| (2..=SAME_SECOND_MAX).contains(&nth))
        });
        (shaped && counted).then(|| Stamp(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn stamps_are_utc_and_sort_as_runs_do() {
        let first = Stamp::at(datetime!(2026-11-26 10:15:00 +1), 1);
        assert_eq!(first.as_str(), "20261126T091500Z");
        let second = Stamp::at(datetime!(2026-11-26 09:15:00 UTC), 2);
        let tenth = Stamp::at(datetime!(2026-11-26 09:15:00 UTC), 10);
        let later = Stamp::at(datetime!(2026-11-26 09:15:01 UTC), 1);
        assert!(first < second && second < tenth && tenth < later);
        for stamp in [first, second, tenth, later] {
            assert_eq!(Stamp::parse(stamp.as_str()), Some(stamp));
        }
    }

    #[test]
    fn other_names_are_no_stamps() {
        for text in [
            "",
            "latest",
            "1764148500",
            "20261126T091500",
            "20261126t091500Z",
            "20261126T0915000",
            "20261126T091500Z-1",
            "20261126T091500Z-01",
            "20261126T091500Z-100",
            "20261126T091500Z/..",
        ] {
            assert_eq!(Stamp::parse(text), None, "{text}");
        }
    }
}
