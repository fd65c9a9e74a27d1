//! Text for people, JSON for programs.

use std::io::{self, Write};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// One JSON document.
    Json,
}

/// Shows an answer: as JSON, or as the text made of it.
pub fn show<T: Serialize>(
    format: Format,
    answer: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<()> {
    let mut out = io::stdout().lock();
    match format {
        Format::Json => {
            serde_json::to_writer(&mut out, answer)?;
            writeln!(out)?;
        }
        Format::Text => out.write_all(text(answer).as_bytes())?,
    }
    out.flush()?;
    Ok(())
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
}
