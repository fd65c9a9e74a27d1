//! Pages of results in Markdown: a page has one section for each suite, and a run replaces its own.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::report::Row;

/// A page before its first section.
pub const EMPTY: &str = "# Storage benchmarks

The newest run of each suite. A section is written by the command that it names, and as a whole: its
figures come from one run. Words are in the [glossary](GLOSSARY.md).
";

/// The page with this section's text in place of the old one, or at its end. A section goes from its
/// heading to the next of the same level.
pub fn with_section(page: &str, heading: &str, text: &str) -> String {
    let head = format!("## {heading}");
    let (mut before, mut after) = (String::new(), String::new());
    let mut found = false;
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("## ") {
            inside = line == head;
            found |= inside;
        }
        if inside {
            continue;
        }
        let part = if found { &mut after } else { &mut before };
        part.push_str(line);
        part.push('\n');
    }
    let mut page = format!("{}\n\n{head}\n\n{}\n", before.trim_end(), text.trim_end());
    if !after.is_empty() {
        page.push('\n');
        page.push_str(&after);
    }
    page
}

/// The rows as a table.
pub fn table(rows: &[&Row]) -> String {
    let mut text = String::from(
        "| bar | contender | median | min to max | unit | ratio | limit | kept |\n\
         | --- | --- | ---: | ---: | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let [bar, contender, median, spread, unit, _, limit, ok] = row.cells();
        // What is held against itself says nothing.
        let peer = row.peer.as_ref().filter(|peer| peer.name != contender);
        let ratio = peer.zip(row.ratio());
        let ratio = ratio.map_or("-".to_owned(), |(peer, ratio)| {
            format!("{ratio:.2} × {}", peer.name)
        });
        let ok = if ok == "NO" { "**no**" } else { &ok };
        let spread = spread.replace("..", " to ");
        writeln!(
            text,
            "| {bar} | {contender} | {median} | {spread} | {unit} | {ratio} | {limit} | {ok} |"
        )
        .expect("writing to a string cannot fail");
    }
    text
}

/// The date of a day since 1970, as `2026-01-31` (Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms": civil_from_days).
pub fn date(day: u64) -> String {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day_of_month:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Limit, Peer, Spread};

    #[test]
    fn a_section_is_replaced_where_it_stands_and_the_others_stay() {
        let page = "# P\n\nintro\n\n## A\n\nold\n\n### Inner\n\nold\n\n## B\n\nkept\n";
        let new = with_section(page, "A", "new\n");
        assert_eq!(new, "# P\n\nintro\n\n## A\n\nnew\n\n## B\n\nkept\n");
        assert_eq!(with_section(&new, "A", "new\n"), new);
    }

    #[test]
    fn a_section_that_is_not_there_comes_last() {
        let new = with_section("# P\n\n## B\n\nkept\n", "A", "new");
        assert_eq!(new, "# P\n\n## B\n\nkept\n\n## A\n\nnew\n");
    }

    #[test]
    fn a_table_names_whom_a_row_is_held_against_and_shows_a_miss() {
        let row = Row {
            bar: "get",
            contender: "ours",
            unit: "us",
            spread: Spread {
                median: 10.0,
                min: 9.0,
                max: 11.0,
            },
            peer: Some(Peer {
                name: "nginx".into(),
                median: 4.0,
            }),
            limit: Some(Limit::Ratio(2.0)),
        };
        let text = table(&[&row]);
        let line =
            "| get | ours | 10.00 | 9.00 to 11.00 | us | 2.50 × nginx | <= 2 x nginx | **no** |";
        assert_eq!(text.lines().last(), Some(line));
        let peer = Row {
            contender: "nginx",
            limit: None,
            ..row
        };
        assert!(table(&[&peer]).ends_with("| us | - | - | - |\n"));
    }

    #[test]
    fn days_become_dates_also_around_leap_days() {
        for (day, expected) in [
            (0, "1970-01-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
        ] {
            assert_eq!(date(day), expected);
        }
    }
}
