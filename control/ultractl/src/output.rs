//! What a verb answers with: text for people, documents for programs, both on stdout.

use std::io::{self, Write};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// Text with more columns, where a verb has more to say.
    Wide,
    /// One JSON document; its fields stay.
    Json,
    /// The same as YAML.
    Yaml,
}

impl Format {
    /// Whether programs read it.
    pub fn is_structured(self) -> bool {
        match self {
            Format::Json | Format::Yaml => true,
            Format::Text | Format::Wide => false,
        }
    }

    /// The format that a command line asks for which does not parse, so that its error has that form, too.
    pub fn asked(args: impl Iterator<Item = String>) -> Format {
        let args: Vec<String> = args.take_while(|arg| arg != "--").collect();
        let values = args.iter().enumerate().filter_map(|(place, arg)| {
            let next = || args.get(place + 1).map(String::as_str);
            match arg.as_str() {
                "-o" | "--output" => next(),
                arg => arg.strip_prefix("--output=").or_else(|| {
                    arg.strip_prefix("-o")
                        .map(|value| value.trim_start_matches('='))
                }),
            }
        });
        let mut known = values.filter_map(|value| Format::from_str(value, false).ok());
        known.next_back().unwrap_or(Format::Text)
    }
}

/// Shows an answer: as a document, or as the text made of it.
pub fn show<T: Serialize>(
    format: Format,
    answer: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<()> {
    let said = match structured(format, answer) {
        Some(document) => document?,
        None => text(answer),
    };
    let mut out = io::stdout().lock();
    out.write_all(said.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Shows one of many answers of a verb that goes on: a line of JSON, or a YAML document of its own.
pub fn show_next<T: Serialize>(
    format: Format,
    answer: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<()> {
    if format == Format::Yaml {
        io::stdout().write_all(b"---\n")?;
    }
    show(format, answer, text)
}

/// The document of an answer, in the formats that have one.
pub fn structured<T: Serialize>(format: Format, answer: &T) -> Option<Result<String>> {
    match format {
        Format::Text | Format::Wide => None,
        Format::Json => Some(
            serde_json::to_string(answer)
                .map(|json| json + "\n")
                .map_err(Into::into),
        ),
        Format::Yaml => Some(serde_saphyr::to_string(answer).map_err(Into::into)),
    }
}

/// A time as 2026-11-26T10:00:00Z.
pub fn moment(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1000);
    let at = OffsetDateTime::from_unix_timestamp(seconds).map(|at| at.format(&Rfc3339));
    match at {
        Ok(Ok(text)) => text,
        // Past the year 9999.
        _ => format!("{seconds} s after 1970"),
    }
}

/// Rows under their heads, each column as wide as it needs.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let body = rows
        .iter()
        .map(|row| line(row.iter().map(String::as_str).collect()));
    [line(heads.to_vec())].into_iter().chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["1".to_owned(), "one".to_owned()],
            vec!["100".to_owned(), "ä".to_owned()],
        ];
        assert_eq!(
            table(&["ID", "NAME"], &rows),
            "ID   NAME\n1    one\n100  ä\n"
        );
    }

    #[test]
    fn an_answer_is_the_same_document_as_json_and_as_yaml() {
        let answer = serde_json::json!({
            "name": "one", "list": ["a", "2", "no", "null"], "empty": [], "count": 7,
            "text": "two\nlines: # here", "nothing": null, "yes": true,
        });
        let json = structured(Format::Json, &answer).unwrap().unwrap();
        let yaml = structured(Format::Yaml, &answer).unwrap().unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).unwrap(),
            answer
        );
        assert!(yaml.contains("name: one\n"), "{yaml}");
        assert!(structured(Format::Wide, &answer).is_none());
    }

    #[test]
    fn the_format_of_a_wrong_command_line_is_found() {
        let asked = |line: &str| Format::asked(line.split(' ').map(str::to_owned));
        assert_eq!(asked("chainfir -o json"), Format::Json);
        assert_eq!(asked("-oyaml x"), Format::Yaml);
        assert_eq!(asked("x --output=json -o text"), Format::Text);
        assert_eq!(asked("x -o"), Format::Text);
        assert_eq!(asked("x -- -o json"), Format::Text);
    }
}
