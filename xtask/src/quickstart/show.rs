//! The steps that were shown, and the table that says so.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Steps in the order in which they held.
#[derive(Default)]
pub struct Show {
    rows: Vec<Row>,
}

struct Row {
    what: String,
    client: String,
    result: String,
    took: Duration,
}

impl Show {
    /// Runs one step, tells of it on stderr, and keeps its result for the table.
    pub fn step<T>(
        &mut self,
        what: &str,
        client: &str,
        run: impl FnOnce() -> Result<(T, String)>,
    ) -> Result<T> {
        eprintln!("{what} ({client}) ...");
        let start = Instant::now();
        let (value, result) = run().with_context(|| format!("step `{what}` with {client}"))?;
        let took = start.elapsed();
        eprintln!("  {result}, {:.1} s", took.as_secs_f64());
        self.rows.push(Row {
            what: what.to_owned(),
            client: client.to_owned(),
            result,
            took,
        });
        Ok(value)
    }
}

impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["shown", "by", "result", "time"].map(str::to_owned);
        let mut lines = vec![heads];
        lines.extend(self.rows.iter().map(|row| {
            let took = format!("{:.1} s", row.took.as_secs_f64());
            [
                row.what.clone(),
                row.client.clone(),
                row.result.clone(),
                took,
            ]
        }));
        let width = |column: usize| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..3).map(width).collect();
        for [what, client, result, took] in &lines {
            writeln!(
                f,
                "{what:<0$}  {client:<1$}  {result:<2$}  {took}",
                widths[0], widths[1], widths[2]
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_what_was_shown_in_columns() {
        let mut show = Show::default();
        show.step("put", "client 1.0", || Ok(((), "3 files".into())))
            .unwrap();
        show.step("read back", "c", || Ok(((), "equal".into())))
            .unwrap();
        let table = show.to_string();
        let columns: Vec<Option<usize>> = table
            .lines()
            .map(|line| line.find("3 files").or(line.find("equal")))
            .collect();
        assert_eq!(columns[1], columns[2]);
        assert_eq!(table.lines().count(), 3);
    }

    #[test]
    fn a_step_that_fails_is_named_and_leaves_no_row() {
        let mut show = Show::default();
        let error = show
            .step::<()>("put", "client 1.0", || Err(anyhow::anyhow!("refused")))
            .unwrap_err();
        assert_eq!(format!("{error:#}"), "step `put` with client 1.0: refused");
        assert_eq!(show.to_string().lines().count(), 1);
    }
}
