//! The ledger as text: one line of JSON for each account and each transfer, by id, and a last line with
//! their SHA-256.
//!
//! A book has one text and a text one book, so that two ledgers are equal when their sums are. What is read
//! is checked: the sum, the form, and every law of [`Book::check`].

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::account::Account;
use crate::book::{Book, Broken};
use crate::transfer::Transfer;

/// What the first line says.
const FORMAT: &str = "ultracloud-ledger-1";

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Format(String),
    Account(Account),
    Transfer(Transfer),
    Sha256(String),
}

/// A text that is no ledger's, or not whole.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the export: {what}")]
pub struct NotALedger {
    line: usize,
    what: &'static str,
    #[source]
    source: Option<Why>,
}

/// What is behind it.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Law(#[from] Broken),
}

fn line_of(line: &Line) -> String {
    serde_json::to_string(line).expect("records have names for keys, and are JSON")
}

/// A ledger as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// All lines.
    pub text: String,
    /// What the last line has: the SHA-256 of all lines before it, in hexadecimal digits.
    pub sha256: String,
}

impl Book {
    /// The book as text. It has to be complete.
    pub fn export(&self) -> Export {
        let format = Line::Format(FORMAT.to_owned());
        let accounts = self.accounts().cloned().map(Line::Account);
        let transfers = self.transfers().cloned().map(Line::Transfer);
        let mut text = String::new();
        for line in std::iter::once(format).chain(accounts).chain(transfers) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", line_of(&line));
        }
        let sha256 = hex::encode(Sha256::digest(&text));
        let _ = writeln!(text, "{}", line_of(&Line::Sha256(sha256.clone())));
        Export { text, sha256 }
    }

    /// The book that a text is of.
    ///
    /// # Errors
    /// The line that is not as it should be, and why.
    pub fn import(text: &str) -> Result<Book, NotALedger> {
        let count = text.lines().count();
        let wrong = |line, what| NotALedger {
            line,
            what,
            source: None,
        };
        let mut book = Book::new();
        let mut end = 0;
        for (at, line) in text.split_inclusive('\n').enumerate() {
            let number = at + 1;
            let read = serde_json::from_str(line).map_err(|error| NotALedger {
                line: number,
                what: "is not what an export has",
                source: Some(error.into()),
            })?;
            let last = number == count;
            match read {
                Line::Format(format) if number == 1 && format == FORMAT => {}
                Line::Account(_) | Line::Transfer(_) if number == 1 || last => {
                    return Err(wrong(number, "the first or the last line is missing"));
                }
                Line::Account(account) => book.know(vec![account], Vec::new()),
                Line::Transfer(transfer) => book.know(Vec::new(), vec![transfer]),
                Line::Sha256(sum) if last => {
                    if sum != hex::encode(Sha256::digest(&text[..end])) {
                        return Err(wrong(number, "the sum is another: the text was changed"));
                    }
                }
                Line::Format(_) | Line::Sha256(_) => {
                    return Err(wrong(
                        number,
                        "the format is unknown, or the line misplaced",
                    ));
                }
            }
            end += line.len();
        }
        if count < 2 {
            return Err(wrong(count, "the text ends too early"));
        }
        book.check().map_err(|broken| NotALedger {
            line: count,
            what: "the laws of a ledger do not hold",
            source: Some(broken.into()),
        })?;
        if book.export().text != text {
            return Err(wrong(
                count,
                "the lines are not in their order, or not in their form",
            ));
        }
        Ok(book)
    }
}
