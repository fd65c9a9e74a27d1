//! What the checks know of a Rust file: its functions, its tests, its `unsafe`, its attributes.
//!
//! Worked out once from the syntax tree, so that strings and comments never count as code.

use std::ops::RangeInclusive;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{Attribute, Block, Ident};

/// The facts of one file.
#[derive(Default)]
pub struct RustFile {
    /// Why the file could not be parsed, with the line.
    pub broken: Option<(usize, String)>,
    /// Functions outside tests.
    pub functions: Vec<Function>,
    /// Lines with the keyword `unsafe`.
    pub unsafe_lines: Vec<usize>,
    /// Whether the crate root forbids unsafe code.
    pub forbids_unsafe: bool,
    test_ranges: Vec<RangeInclusive<usize>>,
    all_tests: bool,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name without its module.
    pub name: String,
    /// Where it begins.
    pub line: usize,
    /// The lines of its body, braces included.
    pub body_lines: usize,
}

impl RustFile {
    /// Parses a file; a failure is kept as a fact.
    pub fn parse(path: &str, text: &str) -> Self {
        let mut facts = Self {
            all_tests: is_test_path(path),
            ..Self::default()
        };
        let file = match syn::parse_file(text) {
            Ok(file) => file,
            Err(error) => {
                facts.broken = Some((error.span().start().line, error.to_string()));
                return facts;
            }
        };
        facts.forbids_unsafe = file.attrs.iter().any(forbids_unsafe);
        facts.visit_file(&file);
        if let Ok(tokens) = text.parse::<TokenStream>() {
            collect_unsafe(tokens, &mut facts.unsafe_lines);
        }
        facts
    }

    /// Whether a line is inside a test.
    pub fn is_test(&self, line: usize) -> bool {
        self.all_tests || self.test_ranges.iter().any(|range| range.contains(&line))
    }

    fn function(&mut self, attrs: &[Attribute], name: &Ident, block: &Block) {
        let (start, end) = (block.span().start().line, block.span().end().line);
        if attrs.iter().any(is_test_attribute) {
            self.test_ranges.push(name.span().start().line..=end);
        }
        if !self.is_test(start) {
            let line = name.span().start().line;
            self.functions.push(Function {
                name: name.to_string(),
                line,
                body_lines: end - start + 1,
            });
        }
    }
}

impl<'ast> Visit<'ast> for RustFile {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.attrs.iter().any(is_test_attribute) {
            let span = item.span();
            self.test_ranges.push(span.start().line..=span.end().line);
        }
        syn::visit::visit_item_mod(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.attrs, &item.sig.ident, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig.ident, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.attrs, &item.sig.ident, block);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
}

/// Files that hold nothing but tests: `tests/`, `benches/` and `tests.rs`.
fn is_test_path(path: &str) -> bool {
    let mut parts = path.split('/');
    parts.any(|part| matches!(part, "tests" | "benches" | "tests.rs"))
}

/// `#[test]`, `#[some::test]` and `#[cfg(test)]`, also inside `all(…)`.
fn is_test_attribute(attribute: &Attribute) -> bool {
    let path = attribute.path();
    if path
        .segments
        .last()
        .is_some_and(|segment| segment.ident == "test")
    {
        return true;
    }
    let Ok(list) = attribute.meta.require_list() else {
        return false;
    };
    let words = list.tokens.to_string();
    let has = |wanted: &str| {
        words
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == wanted)
    };
    path.is_ident("cfg") && has("test") && !has("not")
}

fn forbids_unsafe(attribute: &Attribute) -> bool {
    let Ok(list) = attribute.meta.require_list() else {
        return false;
    };
    list.path.is_ident("forbid") && list.tokens.to_string().contains("unsafe_code")
}

fn collect_unsafe(tokens: TokenStream, lines: &mut Vec<usize>) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if ident == "unsafe" => lines.push(ident.span().start().line),
            TokenTree::Group(group) => collect_unsafe(group.stream(), lines),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_measured_from_brace_to_brace() {
        let text =
            "//! x\nfn a() {\n    b();\n}\nimpl T {\n    fn c(\n        &self,\n    ) { d() }\n}";
        let facts = RustFile::parse("a/src/lib.rs", text);
        let seen: Vec<_> = facts
            .functions
            .iter()
            .map(|f| (f.name.as_str(), f.line, f.body_lines))
            .collect();
        assert_eq!(seen, [("a", 2, 3), ("c", 6, 1)]);
    }

    #[test]
    fn tests_are_known_by_attribute_and_by_path() {
        let text = "fn a() {}\n#[cfg(all(test, not_this))]\nmod t {\n    fn b() {}\n}\n#[x::test]\nfn c() {}";
        let facts = RustFile::parse("a/src/lib.rs", text);
        assert_eq!(facts.functions.len(), 1);
        let tests: Vec<_> = (1..=7).filter(|line| facts.is_test(*line)).collect();
        assert_eq!(tests, [2, 3, 4, 5, 7]);
        assert!(RustFile::parse("a/tests/crash.rs", "fn a() {}").is_test(1));
        assert!(RustFile::parse("a/src/log/tests.rs", "fn a() {}").is_test(1));
        assert!(!RustFile::parse("a/src/lib.rs", "#[cfg(not(test))]\nmod m {}").is_test(2));
    }

    #[test]
    fn unsafe_counts_as_a_keyword_only() {
        let text = "// unsafe\nconst A: &str = \"unsafe\";\nfn a() {\n    m!(unsafe { b() });\n}";
        assert_eq!(RustFile::parse("a/src/lib.rs", text).unsafe_lines, [4]);
        assert!(RustFile::parse("a/src/lib.rs", "#![forbid(unsafe_code)]").forbids_unsafe);
        assert!(!RustFile::parse("a/src/lib.rs", "#![deny(unsafe_code)]").forbids_unsafe);
    }

    #[test]
    fn a_file_that_does_not_parse_says_where() {
        let facts = RustFile::parse("a/src/lib.rs", "fn a() {}\nfn {}");
        assert_eq!(facts.broken.map(|(line, _)| line), Some(2));
    }
}
