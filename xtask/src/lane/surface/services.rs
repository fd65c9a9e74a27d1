//! Whether what the checked-in `.proto` texts and S3's operations promise is served.
//!
//! A gRPC service is served when shipped code makes its tonic server, and whole when the files that name its
//! trait define each of its methods; or, by control-kit, when a file names it with its package, and whole when
//! that file names each method as a verb. What is not served is refused in the open: a document of
//! compatibility names it in a row that says so. tonic's generated bodies, which answer every method with
//! a refusal, are not used. S3's operations are the variants of one enum, and its document lists each.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};
use serde_json::{Value, json};

use super::is_shipped;
use crate::tidy::{Finding, SourceFile, Tree};

/// Documents in which a refusal counts.
const DOCUMENTS: [&str; 4] = [
    "docs/chainfire.md",
    "docs/etcd-compatibility.md",
    "docs/lightningstor.md",
    "docs/s3-compatibility.md",
];
/// The word by which a row of a document refuses a part of an interface.
const REFUSED: &str = "refused";
/// Makes tonic answer every method that is not written with a refusal.
const DEFAULT_STUBS: &str = concat!("generate_default", "_stubs");
/// Where S3's operations are, and where they are documented.
const S3_OPERATIONS: (&str, &str) = ("proto/s3/src/request.rs", "S3Op");
const S3_DOCUMENT: &str = "docs/lightningstor.md";
/// The operation that stands for all that S3 has and we have not.
const S3_REFUSAL: &str = concat!("NotImple", "mented");

/// A service of a `.proto` text.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    name: String,
    package: String,
    path: String,
    line: usize,
    /// Its methods.
    pub methods: Vec<String>,
}

impl Service {
    /// For the artifact.
    pub fn as_json(&self) -> Value {
        json!({ "service": self.name, "proto": self.path, "methods": self.methods })
    }
}

/// The services of all `.proto` texts of shipped crates.
pub fn described(tree: &Tree) -> Vec<Service> {
    let is_promised = |file: &&SourceFile| {
        file.has_extension("proto") && is_shipped(&file.path) && !file.path.contains("/tests/")
    };
    tree.files()
        .iter()
        .filter(is_promised)
        .flat_map(in_proto)
        .collect()
}

fn in_proto(file: &SourceFile) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    let mut package = "";
    for (line, text) in file.lines() {
        let code = text.split("//").next().unwrap_or_default();
        let words: Vec<&str> = code
            .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.')
            .filter(|word| !word.is_empty())
            .collect();
        match words[..] {
            ["package", name, ..] => package = name,
            ["service", name, ..] => services.push(Service {
                name: name.to_owned(),
                package: package.to_owned(),
                path: file.path.clone(),
                line,
                methods: Vec::new(),
            }),
            ["rpc", method, ..] => {
                if let Some(service) = services.last_mut() {
                    service.methods.push(method.to_owned());
                }
            }
            _ => {}
        }
    }
    services
}

/// A word of a file's code, as it stands in its group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    text: String,
    line: usize,
    before: String,
    after: String,
}

/// The code of a file of a shipped program, without its tests.
struct Code<'a> {
    path: &'a str,
    words: Vec<Word>,
    /// Texts in quotes.
    literals: BTreeSet<String>,
}

impl Code<'_> {
    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|one| one.text == word)
    }
}

fn shipped_code(tree: &Tree) -> Vec<Code<'_>> {
    let shipped = tree.rust_files().filter(|(file, _)| is_shipped(&file.path));
    let code = shipped.map(|(file, rust)| {
        let (mut words, mut literals) = (Vec::new(), Vec::new());
        if let Ok(tokens) = file.text.parse::<TokenStream>() {
            collect(tokens, &mut words, &mut literals);
        }
        words.retain(|word| !rust.is_test(word.line));
        literals.retain(|(line, _)| !rust.is_test(*line));
        Code {
            path: &file.path,
            words,
            literals: literals.into_iter().map(|(_, text)| text).collect(),
        }
    });
    code.collect()
}

fn collect(tokens: TokenStream, words: &mut Vec<Word>, literals: &mut Vec<(usize, String)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let text = |place: Option<usize>| match place.and_then(|place| tokens.get(place)) {
        Some(TokenTree::Ident(ident)) => ident.to_string(),
        Some(TokenTree::Punct(punct)) => punct.as_char().to_string(),
        _ => String::new(),
    };
    for (place, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(ident) => words.push(Word {
                text: ident.to_string(),
                line: ident.span().start().line,
                before: text(place.checked_sub(1)),
                after: text(Some(place + 1)),
            }),
            TokenTree::Group(group) => collect(group.stream(), words, literals),
            TokenTree::Literal(literal) => {
                let quoted = literal.to_string().trim_matches('"').to_owned();
                literals.push((literal.span().start().line, quoted));
            }
            TokenTree::Punct(_) => {}
        }
    }
}

/// Refusals in shipped code of what an interface has, where no document says so.
pub fn stubs(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Code { path, words, .. } in shipped_code(tree) {
        let mut method = String::new();
        for (place, word) in words.iter().enumerate() {
            if word.before == "fn" {
                method.clone_from(&word.text);
            }
            let is_made = word.text == "unimplemented"
                && (word.after == "!"
                    || place
                        .checked_sub(1)
                        .is_some_and(|before| words[before].text == "Status"));
            let is_macro = word.text == concat!("to", "do") && word.after == "!";
            if (is_made || is_macro) && !is_refused(tree, &camel(&method)) {
                let what = format!(
                    "{method} is a stub: write it, or say in a document of compatibility that {} is {REFUSED}",
                    camel(&method)
                );
                findings.push(Finding::new(path, word.line, what));
            }
        }
    }
    findings
}

/// Services and methods that no code serves and no document refuses.
pub fn completeness(tree: &Tree) -> Vec<Finding> {
    let code = shipped_code(tree);
    let mut findings = Vec::new();
    for service in described(tree) {
        let Some(missing) = missing(&service, &code) else {
            if !is_refused(tree, &service.name) {
                let what = format!("service {} is served by no program", service.name);
                findings.push(Finding::new(&service.path, service.line, what));
            }
            continue;
        };
        for method in missing.iter().filter(|method| !is_refused(tree, method)) {
            let what = format!("{}.{method} is promised and not there", service.name);
            findings.push(Finding::new(&service.path, service.line, what));
        }
    }
    for file in &code {
        let stubs = file.words.iter().filter(|word| word.text == DEFAULT_STUBS);
        let what = "generated bodies refuse every method that is not written";
        findings.extend(stubs.map(|word| Finding::new(file.path, word.line, what)));
    }
    findings.extend(undocumented_operations(tree));
    findings
}

/// The methods of a service that no code has; none at all where nothing serves it.
fn missing<'a>(service: &'a Service, code: &[Code<'_>]) -> Option<Vec<&'a str>> {
    let methods = service.methods.iter().map(String::as_str);
    let full = format!("{}.{}", service.package, service.name);
    let by_kit: Vec<&Code<'_>> = code
        .iter()
        .filter(|file| file.literals.contains(&full))
        .collect();
    if !by_kit.is_empty() {
        let is_verb = |method: &&str| by_kit.iter().any(|file| file.literals.contains(*method));
        return Some(methods.filter(|method| !is_verb(method)).collect());
    }
    let server = format!("{}Server", title(&service.name));
    if !code.iter().any(|file| file.has(&server)) {
        return None;
    }
    let module = format!("{}_server", snake(&service.name));
    let there: BTreeSet<&str> = code
        .iter()
        .filter(|file| file.has(&module))
        .flat_map(|file| file.words.iter().filter(|word| defines(word)))
        .map(|word| word.text.as_str())
        .collect();
    Some(
        methods
            .filter(|method| !there.contains(snake(method).as_str()))
            .collect(),
    )
}

/// Whether a word names a method as a function does, or as the entry of a macro that writes some.
fn defines(word: &Word) -> bool {
    word.before == "fn" || word.after == ":" || word.after == "="
}

/// Whether a row of a document refuses this part of an interface.
fn is_refused(tree: &Tree, name: &str) -> bool {
    let names = |row: &str| {
        row.starts_with('|')
            && row.to_lowercase().contains(REFUSED)
            && row
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word == name)
    };
    !name.is_empty()
        && DOCUMENTS
            .iter()
            .filter_map(|path| tree.text(path))
            .any(|text| text.lines().any(names))
}

/// Operations of S3 that its document does not list.
fn undocumented_operations(tree: &Tree) -> Vec<Finding> {
    let (path, name) = S3_OPERATIONS;
    let Some(text) = tree.text(path) else {
        return Vec::new();
    };
    let document = tree.text(S3_DOCUMENT).unwrap_or_default();
    let Ok(file) = syn::parse_file(text) else {
        // A file that does not parse is a finding of tidy's.
        return Vec::new();
    };
    let operations = file.items.iter().find_map(|item| match item {
        syn::Item::Enum(item) if item.ident == name => Some(&item.variants),
        _ => None,
    });
    let Some(operations) = operations else {
        return vec![Finding::new(
            path,
            1,
            format!("the enum {name} of S3's operations is gone"),
        )];
    };
    let undocumented = operations.iter().filter_map(|variant| {
        let operation = variant.ident.to_string();
        // The versions of one operation share its row.
        let listed = operation.trim_end_matches(['V', '1', '2']);
        let is_listed = operation == S3_REFUSAL || document.contains(listed);
        let line = variant.ident.span().start().line;
        let what = format!("S3's {operation} is served and {S3_DOCUMENT} does not list it");
        (!is_listed).then(|| Finding::new(path, line, what))
    });
    undocumented.collect()
}

/// `HashKV` as `hash_kv`, as prost names methods and modules.
fn snake(camel: &str) -> String {
    let letters: Vec<char> = camel.chars().collect();
    let mut snake = String::new();
    for (place, letter) in letters.iter().enumerate() {
        let after_lower = place > 0 && !letters[place - 1].is_uppercase();
        let before_lower = letters
            .get(place + 1)
            .is_some_and(|next| next.is_lowercase());
        if letter.is_uppercase() && place > 0 && (after_lower || before_lower) {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// `KV` as `Kv`, as prost names types.
fn title(name: &str) -> String {
    camel(&snake(name))
}

/// `hash_kv` as `HashKv`.
fn camel(snake: &str) -> String {
    let part = |part: &str| {
        let mut letters = part.chars();
        let first = letters.next().into_iter().flat_map(char::to_uppercase);
        first.chain(letters).collect::<String>()
    };
    snake.split('_').map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTO: &str = "// service Old {\nservice KV {\n  rpc Range(A) returns (B);\n  rpc HashKV(A) returns (B); // rpc Not\n}\n";
    const CODE: &str = "//! x\nuse pb::kv_server::{self, KvServer};\nfn a() { KvServer::new(1); }\n\
        unary! { kv_server::Kv { range: A => B; } async fn hash_kv() {} }\n";

    fn tree(code: &str, document: &str) -> Tree {
        Tree::of(&[
            ("proto/etcd/proto/kv.proto", PROTO),
            ("control/chainfire/src/grpc.rs", code),
            ("docs/etcd-compatibility.md", document),
        ])
    }

    fn said(findings: &[Finding]) -> Vec<&str> {
        findings
            .iter()
            .map(|finding| finding.what.as_str())
            .collect()
    }

    #[test]
    fn a_service_whose_methods_are_all_there_is_complete() {
        let whole = tree(CODE, "");
        assert_eq!(completeness(&whole), []);
        let services = described(&whole);
        assert_eq!(services.len(), 1);
        assert_eq!(services[0].methods, ["Range", "HashKV"]);
    }

    #[test]
    fn a_method_that_is_missing_is_found_unless_a_document_refuses_it() {
        let code = CODE.replace("async fn hash_kv() {}", "");
        let found = completeness(&tree(&code, "HashKV is there.\n"));
        assert_eq!(said(&found), ["KV.HashKV is promised and not there"]);
        assert_eq!(found[0].line, 2);
        let row = "| `hash` | HashKV is refused | it is never asked for |\n";
        assert_eq!(completeness(&tree(&code, row)), []);
        // A call of the method defines nothing.
        let called = CODE.replace("async fn hash_kv() {}", "x(hash_kv(1));");
        assert_eq!(completeness(&tree(&called, "")).len(), 1);
    }

    #[test]
    fn a_service_that_nobody_serves_is_found() {
        let code = "//! x\n#[cfg(test)]\nmod t { fn a() { KvServer::new(1); } }\n";
        assert_eq!(
            said(&completeness(&tree(code, ""))),
            ["service KV is served by no program"]
        );
        assert_eq!(
            completeness(&tree(code, "| KV | refused as a whole | none |\n")),
            []
        );
    }

    #[test]
    fn a_service_of_the_kit_is_whole_when_each_method_is_a_verb() {
        let proto = format!("package uc.kv.v1;\n{PROTO}");
        let tree = |code: &str| {
            Tree::of(&[
                ("proto/control/kv.proto", &proto),
                ("control/a/src/b.rs", code),
            ])
        };
        let whole =
            "//! x\nfn a() { Api::new(\"uc.kv.v1.KV\").verb(\"Range\").verb(\"HashKV\"); }\n";
        assert_eq!(completeness(&tree(whole)), []);
        let part = whole.replace(".verb(\"HashKV\")", "");
        assert_eq!(
            said(&completeness(&tree(&part))),
            ["KV.HashKV is promised and not there"]
        );
        let other = whole.replace("uc.kv", "uc.other");
        assert_eq!(
            said(&completeness(&tree(&other))),
            ["service KV is served by no program"]
        );
    }

    #[test]
    fn generated_refusals_are_found() {
        let code = format!("{CODE}fn b() {{ configure().{DEFAULT_STUBS}(true); }}\n");
        assert!(said(&completeness(&tree(&code, "")))[0].contains("generated bodies"));
    }

    #[test]
    fn stubs_are_found_in_shipped_code_alone() {
        let made = concat!("Status::unimple", "mented(\"no\")");
        let stub = format!("//! x\nasync fn hash_kv() {{ Err({made}) }}\n");
        let found = stubs(&tree(&stub, ""));
        assert_eq!((found.len(), found[0].line), (1, 2));
        assert!(found[0].what.starts_with("hash_kv is a stub"));
        assert_eq!(stubs(&tree(&stub, "| HashKv | refused | none |\n")), []);
        for body in [
            concat!("to", "do!()"),
            concat!("unimple", "mented!(\"later\")"),
        ] {
            let stub = format!("//! x\nfn a() {{ {body} }}\n");
            assert_eq!(stubs(&tree(&stub, "")).len(), 1, "{body}");
        }
        let tested = format!("//! x\n#[cfg(test)]\nmod t {{ fn a() {{ {made}; }} }}\n");
        assert_eq!(stubs(&tree(&tested, "")), []);
        let mapped = "//! x\nfn a(c: Code) { match c { Code::Unimplemented => 501 } }\n";
        assert_eq!(stubs(&tree(mapped, "")), []);
    }

    #[test]
    fn an_operation_of_s3_that_is_not_documented_is_found() {
        let code = "//! x\npub enum S3Op { ListObjectsV2(A), GetObject, NotImplemented(B) }\n";
        let tree = |document| Tree::of(&[(S3_OPERATIONS.0, code), (S3_DOCUMENT, document)]);
        assert_eq!(completeness(&tree("ListObjects, GetObject")), []);
        let found = completeness(&tree("ListObjects"));
        assert!(found[0].what.contains("GetObject is served"), "{found:?}");
        let gone = Tree::of(&[(S3_OPERATIONS.0, "//! x\n")]);
        assert!(completeness(&gone)[0].what.contains("is gone"));
    }

    #[test]
    fn names_are_as_prost_makes_them() {
        for (name, as_snake, as_type) in [
            ("KV", "kv", "Kv"),
            ("HashKV", "hash_kv", "HashKv"),
            ("LeaseTimeToLive", "lease_time_to_live", "LeaseTimeToLive"),
            ("Raft", "raft", "Raft"),
        ] {
            assert_eq!(snake(name), as_snake);
            assert_eq!(title(name), as_type);
        }
    }
}
