//! What the clients put: a tree of real files, and one large file.
//!
//! The tree holds files of this checkout and of the crates it is built from, and a few whose names
//! and sizes are where object stores go wrong. The large file is pseudo-random, so that no block
//! equals another. Digests are taken when the input is made, before any client has touched it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::workspace::Workspace;

const FILES_MIN: usize = 1000;
const FILES_MAX: usize = 1300;
const FILES_PER_CRATE_MAX: usize = 25;
const FILE_BYTES_MAX: u64 = 2 << 20;
/// A gibibyte and a tail that fills no block.
const LARGE_BYTES: usize = (1 << 30) + 12_345;
const BLOCK_BYTES: usize = 1 << 20;

/// A SHA-256.
pub type Sum = [u8; 32];

/// Digests by path from the root of a tree.
pub type Sums = BTreeMap<String, Sum>;

/// What is put, and how it must come back.
pub struct Input {
    /// The directory of the tree.
    pub tree: PathBuf,
    /// The digests of its files.
    pub sums: Sums,
    /// The length of all its files together.
    pub bytes: u64,
    /// The large file.
    pub large: PathBuf,
    /// The digest of the large file.
    pub large_sum: Sum,
}

impl Input {
    /// What there is, in a line.
    pub fn summary(&self) -> String {
        let mb = self.bytes as f64 / 1e6;
        format!(
            "{} files of {mb:.1} MB together, one of {LARGE_BYTES} bytes",
            self.sums.len()
        )
    }
}

/// Makes the input below `dir`.
pub fn build(workspace: &Workspace, dir: &Path) -> Result<Input> {
    let tree = dir.join("tree");
    let mut files_count = odd_files(&tree.join("odd"))?;
    let sources = checkout_files(workspace).into_iter().chain(crate_files()?);
    for (source, name) in sources.take(FILES_MAX) {
        let target = tree.join(name);
        std::fs::create_dir_all(target.parent().unwrap_or(&tree))?;
        std::fs::copy(&source, &target)
            .with_context(|| format!("cannot copy {}", source.display()))?;
        files_count += 1;
    }
    ensure!(
        files_count >= FILES_MIN,
        "found {files_count} files to put, {FILES_MIN} are needed: run `cargo fetch` first"
    );
    let sums = sums(&tree)?;
    let mut bytes = 0;
    for name in sums.keys() {
        bytes += tree.join(name).metadata()?.len();
    }
    let large = dir.join("large.bin");
    let large_sum = write_random(&large, LARGE_BYTES, 1)?;
    Ok(Input {
        tree,
        sums,
        bytes,
        large,
        large_sum,
    })
}

/// The digests of all files below a directory.
pub fn sums(tree: &Path) -> Result<Sums> {
    let mut sums = Sums::new();
    for path in files_below(tree)? {
        let name = path
            .strip_prefix(tree)?
            .to_str()
            .context("a file name is not UTF-8")?;
        sums.insert(name.to_owned(), sum(&path)?);
    }
    Ok(sums)
}

/// The digest of a file.
pub fn sum(path: &Path) -> Result<Sum> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&block[..length]),
        }
    }
}

/// A digest as people compare it.
pub fn hex(sum: &Sum) -> String {
    use std::fmt::Write as _;
    sum.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

/// The first names that differ between two trees; `None` when they are equal.
pub fn difference(put: &Sums, got: &Sums) -> Option<String> {
    let missing = put.keys().filter(|name| !got.contains_key(*name));
    let added = got.keys().filter(|name| !put.contains_key(*name));
    let changed = put
        .iter()
        .filter(|(name, sum)| got.get(*name).is_some_and(|got| got != *sum));
    let said: Vec<String> = missing
        .map(|name| format!("missing {name}"))
        .chain(added.map(|name| format!("added {name}")))
        .chain(changed.map(|(name, _)| format!("changed {name}")))
        .collect();
    let first = said.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    (!said.is_empty()).then(|| format!("{} differ: {first}", said.len()))
}

/// Writes pseudo-random bytes (xorshift64*) and gives their digest.
pub fn write_random(path: &Path, length: usize, seed: u64) -> Result<Sum> {
    let mut file =
        File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut state = seed.max(1);
    let mut block = vec![0; BLOCK_BYTES];
    let mut left = length;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            word.copy_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
        let part = &block[..left.min(BLOCK_BYTES)];
        file.write_all(part)?;
        hash.update(part);
        left -= part.len();
    }
    Ok(hash.finalize().into())
}

/// Names and sizes on the borders: empty, around a block, around the bodies that are kept inline,
/// around what clients put in parts.
fn odd_files(dir: &Path) -> Result<usize> {
    const NAMES: [&str; 18] = [
        "with space.txt",
        " leading space",
        "plus+and&ampersand=equals.txt",
        "percent%20literal%2F.txt",
        "hash#mark.txt",
        "question?mark.txt",
        "semi;colon,comma.txt",
        "quote'single\"double.txt",
        "<tag>&amp;.xml",
        "brackets[0]{1}(2).txt",
        "star*.txt",
        "at@colon:tilde~.txt",
        ".hidden",
        "ünïcödé-é.txt",
        "日本語/ファイル.txt",
        "emoji-🚀🌩.txt",
        "العربية.txt",
        "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/deep.txt",
    ];
    const SIZES: [usize; 15] = [
        0, 1, 511, 4095, 4096, 4097, 65_535, 65_536, 65_537, 262_144, 1_048_577, 5_242_880,
        8_388_607, 8_388_608, 8_388_609,
    ];
    for (index, name) in NAMES.iter().enumerate() {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
        write_random(&path, 100 + index * 777, index as u64 + 2)?;
    }
    for size in SIZES {
        write_random(
            &dir.join(format!("size-{size}.bin")),
            size,
            size as u64 + 99,
        )?;
    }
    Ok(NAMES.len() + SIZES.len())
}

/// The files of this checkout, under `checkout/`; none when it is not git's.
fn checkout_files(workspace: &Workspace) -> Vec<(PathBuf, String)> {
    let names = workspace.git_files(&[]).unwrap_or_else(|error| {
        eprintln!("  no files of this checkout: {error:#}");
        Vec::new()
    });
    let files = names
        .into_iter()
        .map(|name| (workspace.root().join(&name), format!("checkout/{name}")));
    files.filter(|(path, _)| is_wanted(path)).collect()
}

/// Files of the crates that cargo has unpacked, some of each, under `crates/`.
fn crate_files() -> Result<Vec<(PathBuf, String)>> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(PathBuf::from(home).join(".cargo"))
        });
    let sources = home
        .context("neither CARGO_HOME nor HOME is set")?
        .join("registry/src");
    let mut files = Vec::new();
    for registry in entries(&sources)? {
        for unpacked in entries(&registry)? {
            let wanted = files_below(&unpacked)?
                .into_iter()
                .filter(|path| is_wanted(path));
            for path in wanted.take(FILES_PER_CRATE_MAX) {
                if let Some(name) = path.strip_prefix(&registry)?.to_str() {
                    files.push((path.clone(), format!("crates/{name}")));
                }
            }
        }
    }
    Ok(files)
}

fn is_wanted(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_BYTES_MAX)
}

/// The entries of a directory in order; none when it does not exist.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let entries = dir
        .read_dir()
        .with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// All regular files below a directory, in order; links are not followed.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in entries(&dir)? {
            let kind = path.symlink_metadata()?.file_type();
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_files_have_their_length_their_digest_and_no_equal_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let length = 2 * BLOCK_BYTES + 7;
        let written = write_random(&path, length, 3).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), length);
        assert_eq!(sum(&path).unwrap(), written);
        assert_ne!(bytes[..4096], bytes[BLOCK_BYTES..BLOCK_BYTES + 4096]);
        assert_ne!(write_random(&path, length, 4).unwrap(), written);
    }

    #[test]
    fn a_digest_is_shown_as_sha256sum_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, "").unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(&sum(&path).unwrap()), empty);
    }

    #[test]
    fn odd_files_are_all_there_and_a_copy_is_equal() {
        let dir = tempfile::tempdir().unwrap();
        let count = odd_files(dir.path()).unwrap();
        let put = sums(dir.path()).unwrap();
        assert_eq!(put.len(), count);
        assert_eq!(difference(&put, &put.clone()), None);
    }

    #[test]
    fn differences_are_named() {
        let put = Sums::from([("a".into(), [0; 32]), ("b".into(), [1; 32])]);
        let got = Sums::from([("b".into(), [2; 32]), ("c".into(), [3; 32])]);
        let said = difference(&put, &got).unwrap();
        assert_eq!(said, "3 differ: missing a, added c, changed b");
    }
}
