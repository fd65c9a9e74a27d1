//! The four ways S3 writes an instant, all in UTC and from whole seconds since 1970.
//!
//! Time always comes in as an argument: nothing here reads a clock. Formatting cannot fail for the
//! years 0 to 9999; values outside are clamped, since they can only come from a wrong clock.

use time::{Date, Month, OffsetDateTime, Time};

const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Last second of the year 9999.
const UNIX_MAX: i64 = 253_402_300_799;

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub type HttpDateText = [u8; 29];

fn civil(unix_s: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix_s.clamp(0, UNIX_MAX))
        .expect("the years 1970 to 9999 are representable")
}

fn put(out: &mut [u8], value: u32) {
    let mut rest = value;
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// The IMF-fixdate of RFC 9110 section 5.6.7.
pub fn http_date(unix_s: i64) -> HttpDateText {
    let at = civil(unix_s);
    let mut out = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    out[..3]
        .copy_from_slice(WEEKDAYS[usize::from(at.weekday().number_days_from_monday())].as_bytes());
    put(&mut out[5..7], at.day().into());
    out[8..11].copy_from_slice(MONTHS[usize::from(u8::from(at.month())) - 1].as_bytes());
    put(&mut out[12..16], at.year().unsigned_abs());
    put(&mut out[17..19], at.hour().into());
    put(&mut out[20..22], at.minute().into());
    put(&mut out[23..25], at.second().into());
    out
}

/// `2009-10-12T17:50:30.000Z`, the form of the XML answers.
pub fn iso8601(unix_s: i64) -> [u8; 24] {
    let at = civil(unix_s);
    let mut out = *b"1970-01-01T00:00:00.000Z";
    put(&mut out[..4], at.year().unsigned_abs());
    put(&mut out[5..7], u8::from(at.month()).into());
    put(&mut out[8..10], at.day().into());
    put(&mut out[11..13], at.hour().into());
    put(&mut out[14..16], at.minute().into());
    put(&mut out[17..19], at.second().into());
    out
}

/// `20130524T000000Z`, the form of `x-amz-date`.
pub fn amz_date(unix_s: i64) -> [u8; 16] {
    let at = civil(unix_s);
    let mut out = *b"19700101T000000Z";
    put(&mut out[..4], at.year().unsigned_abs());
    put(&mut out[4..6], u8::from(at.month()).into());
    put(&mut out[6..8], at.day().into());
    put(&mut out[9..11], at.hour().into());
    put(&mut out[11..13], at.minute().into());
    put(&mut out[13..15], at.second().into());
    out
}

fn digits(text: &[u8]) -> Option<u16> {
    text.iter().try_fold(0_u16, |sum, b| {
        b.is_ascii_digit()
            .then(|| sum.checked_mul(10)?.checked_add(u16::from(b - b'0')))?
    })
}

fn unix(year: u16, month: u16, day: u16, clock: (u16, u16, u16)) -> Option<i64> {
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(year.into(), month, u8::try_from(day).ok()?).ok()?;
    let narrow = |n: u16| u8::try_from(n).ok();
    // A leap second is written as 60; it is the last second of its minute here.
    let time = Time::from_hms(
        narrow(clock.0)?,
        narrow(clock.1)?,
        narrow(clock.2.min(60))?.min(59),
    )
    .ok()?;
    Some(date.with_time(time).assume_utc().unix_timestamp())
}

/// Reads `YYYYMMDDTHHMMSSZ`.
pub fn parse_amz_date(text: &str) -> Option<i64> {
    let b = text.as_bytes();
    if b.len() != 16 || b[8] != b'T' || b[15] != b'Z' {
        return None;
    }
    let clock = (digits(&b[9..11])?, digits(&b[11..13])?, digits(&b[13..15])?);
    unix(
        digits(&b[..4])?,
        digits(&b[4..6])?,
        digits(&b[6..8])?,
        clock,
    )
}

/// Reads the three date forms of RFC 9110 section 5.6.7; anything else is `None`.
pub fn parse_http_date(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Some((weekday, rest)) = text.split_once(',') {
        let rest = rest.trim_start().strip_suffix("GMT")?.trim_end().as_bytes();
        return if weekday.len() == 3 {
            imf_fixdate(rest)
        } else {
            rfc850_date(rest)
        };
    }
    asctime_date(text.as_bytes())
}

fn month_number(name: &[u8]) -> Option<u16> {
    let index = MONTHS
        .iter()
        .position(|m| m.as_bytes().eq_ignore_ascii_case(name))?;
    Some(index as u16 + 1)
}

fn clock(b: &[u8]) -> Option<(u16, u16, u16)> {
    if b.len() != 8 || b[2] != b':' || b[5] != b':' {
        return None;
    }
    Some((digits(&b[..2])?, digits(&b[3..5])?, digits(&b[6..])?))
}

fn imf_fixdate(b: &[u8]) -> Option<i64> {
    if b.len() != 20 || b[2] != b' ' || b[6] != b' ' || b[11] != b' ' {
        return None;
    }
    unix(
        digits(&b[7..11])?,
        month_number(&b[3..6])?,
        digits(&b[..2])?,
        clock(&b[12..])?,
    )
}

fn rfc850_date(b: &[u8]) -> Option<i64> {
    if b.len() != 18 || b[2] != b'-' || b[6] != b'-' || b[9] != b' ' {
        return None;
    }
    let short = digits(&b[7..9])?;
    let year = if short < 70 {
        2000 + short
    } else {
        1900 + short
    };
    unix(
        year,
        month_number(&b[3..6])?,
        digits(&b[..2])?,
        clock(&b[10..])?,
    )
}

fn asctime_date(b: &[u8]) -> Option<i64> {
    if b.len() != 24 || b[3] != b' ' || b[7] != b' ' || b[10] != b' ' || b[19] != b' ' {
        return None;
    }
    let day = if b[8] == b' ' {
        digits(&b[9..10])?
    } else {
        digits(&b[8..10])?
    };
    unix(
        digits(&b[20..])?,
        month_number(&b[4..7])?,
        day,
        clock(&b[11..19])?,
    )
}

/// The Date header of this second, formatted once a second instead of once an answer.
#[derive(Debug, Clone)]
pub struct DateCache {
    unix_s: i64,
    text: HttpDateText,
}

impl Default for DateCache {
    fn default() -> Self {
        Self {
            unix_s: 0,
            text: http_date(0),
        }
    }
}

impl DateCache {
    /// The text for this instant.
    pub fn at(&mut self, unix_s: i64) -> &HttpDateText {
        if self.unix_s != unix_s {
            self.unix_s = unix_s;
            self.text = http_date(unix_s);
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_examples_of_the_specifications() {
        assert_eq!(&http_date(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&iso8601(1_255_369_830), b"2009-10-12T17:50:30.000Z");
        assert_eq!(&amz_date(1_369_353_600), b"20130524T000000Z");
        assert_eq!(&http_date(i64::MAX)[12..16], b"9999");
        assert_eq!(&http_date(i64::MIN)[12..16], b"1970");
    }

    #[test]
    fn reads_the_three_http_forms() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse_http_date(text), Some(784_111_777), "{text}");
        }
        for text in [
            "",
            ",",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "é, é GMT",
        ] {
            assert_eq!(parse_http_date(text), None, "{text}");
        }
    }

    #[test]
    fn amz_dates_round_trip_and_refuse_other_shapes() {
        for unix_s in [0, 951_782_400, 1_369_353_600, UNIX_MAX] {
            let text = amz_date(unix_s);
            assert_eq!(
                parse_amz_date(std::str::from_utf8(&text).unwrap()),
                Some(unix_s)
            );
        }
        for text in [
            "20130524",
            "20130524T000000",
            "20130524T250000Z",
            "20131324T000000Z",
            "2013-524T000000Z",
        ] {
            assert_eq!(parse_amz_date(text), None, "{text}");
        }
    }

    #[test]
    fn the_cache_follows_the_clock() {
        let mut cache = DateCache::default();
        assert_eq!(cache.at(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(cache.at(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
