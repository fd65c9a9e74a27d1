//! Words by which a document or a program admits that it is not finished. What is not there is named as
//! such ("not started", "no versioning"), not promised.
//!
//! The phrases are put together from halves, so that this file does not find itself.

use super::is_shipped;
use crate::tidy::{Finding, SourceFile, Tree};

const PHRASES: [&str; 10] = [
    concat!("coming ", "soon"),
    concat!("work in ", "progress"),
    concat!("not implemented ", "yet"),
    concat!("not yet ", "implemented"),
    concat!("not yet ", "supported"),
    concat!("to be ", "implemented"),
    concat!("place", "holder"),
    concat!("for now, ", "just"),
    concat!("proof of ", "concept"),
    concat!("lorem ", "ipsum"),
];

/// Records of decisions speak of what was then.
const RECORDS: &str = "docs/adr/";

/// Every such phrase in public documents and in the code of shipped programs.
pub fn check(tree: &Tree) -> Vec<Finding> {
    tree.files()
        .iter()
        .filter(|file| is_public(file))
        .flat_map(in_file)
        .collect()
}

fn is_public(file: &SourceFile) -> bool {
    let is_document = file.has_extension("md") && !file.path.starts_with(RECORDS);
    is_document || is_shipped(&file.path)
}

fn in_file(file: &SourceFile) -> Vec<Finding> {
    let is_test = |line| file.rust.as_ref().is_some_and(|rust| rust.is_test(line));
    let found = file
        .lines()
        .filter(|(number, _)| !is_test(*number))
        .filter_map(|(number, line)| {
            let folded = line.to_lowercase();
            let phrase = PHRASES.into_iter().find(|phrase| folded.contains(phrase))?;
            let what = format!("unfinished wording: {phrase}");
            Some(Finding::new(&file.path, number, what))
        });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phrase_is_found_in_documents_and_in_shipped_code() {
        for phrase in PHRASES {
            let line = format!("// It is {}.\n", phrase.to_uppercase());
            for path in ["README.md", "docs/a.md", "control/a/src/b.rs"] {
                assert_eq!(
                    check(&Tree::of(&[(path, &line)])).len(),
                    1,
                    "{path}: {phrase}"
                );
            }
            for path in ["docs/adr/0001.md", "xtask/src/a.rs", "control/a/tests/b.rs"] {
                assert_eq!(check(&Tree::of(&[(path, &line)])), [], "{path}: {phrase}");
            }
        }
        assert_eq!(
            check(&Tree::of(&[("README.md", "iam is not started.")])),
            []
        );
    }
}
