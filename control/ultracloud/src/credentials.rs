//! The root user's keys and token, and the master key of encrypted volumes: from the environment, or from files that the first start makes.
//!
//! A file is readable by its owner alone, is complete or absent, and is never overwritten. The
//! secret key is shown once, when it is made; the token is not shown.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use coronafs::MasterKey;
use serde::{Deserialize, Serialize};

const NAME: &str = "root-credentials";
const ACCESS_KEY_VAR: &str = "ULTRACLOUD_ACCESS_KEY";
const SECRET_KEY_VAR: &str = "ULTRACLOUD_SECRET_KEY";
const TOKEN_NAME: &str = "root-token";
const TOKEN_VAR: &str = "ULTRACLOUD_TOKEN";
const MASTER_KEY_NAME: &str = "coronafs-master-key";
const MASTER_KEY_BYTES: usize = 32;
/// Permission bits of everybody but the owner.
const OTHERS_MODE: u32 = 0o077;
const ACCESS_KEY_CHARS: usize = 20;
const SECRET_KEY_CHARS: usize = 40;
const TOKEN_CHARS: usize = 43;
const TOKEN_CHARS_MIN: usize = 16;
const ACCESS_KEY_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const SECRET_KEY_ALPHABET: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The root user's access key and secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootCredentials {
    /// The access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
}

/// Where the keys came from.
pub enum Origin {
    /// The environment.
    Environment,
    /// The file of an earlier start.
    File,
    /// Made now, and written to this file.
    Made(PathBuf),
}

/// Finds the keys, or makes them.
///
/// # Errors
/// When only one variable is set, the file is open to others, or it cannot be read or written.
pub fn load(data_dir: &Path) -> Result<(RootCredentials, Origin)> {
    let of_env = from_variables(
        std::env::var(ACCESS_KEY_VAR).ok(),
        std::env::var(SECRET_KEY_VAR).ok(),
    );
    if let Some(keys) = of_env? {
        return Ok((keys, Origin::Environment));
    }
    let path = data_dir.join(NAME);
    if path.exists() {
        return Ok((read(&path)?, Origin::File));
    }
    let keys = RootCredentials {
        access_key: random_text(ACCESS_KEY_CHARS, ACCESS_KEY_ALPHABET)?,
        secret_key: random_text(SECRET_KEY_CHARS, SECRET_KEY_ALPHABET)?,
    };
    write(data_dir, &path, &toml::to_string(&keys)?)?;
    Ok((keys, Origin::Made(path)))
}

/// Finds root's token for the node's API, or makes it.
///
/// # Errors
/// When it is no token, the file is open to others, or it cannot be read or written.
pub fn load_token(data_dir: &Path) -> Result<(String, Origin)> {
    let of_env = std::env::var(TOKEN_VAR).ok();
    if let Some(token) = of_env.filter(|token| !token.is_empty()) {
        check_token(&token).with_context(|| TOKEN_VAR.to_owned())?;
        return Ok((token, Origin::Environment));
    }
    let path = data_dir.join(TOKEN_NAME);
    if path.exists() {
        let token = read_private(&path)?.trim().to_owned();
        check_token(&token).with_context(|| format!("{} is malformed", path.display()))?;
        return Ok((token, Origin::File));
    }
    let token = random_text(TOKEN_CHARS, SECRET_KEY_ALPHABET)?;
    write(data_dir, &path, &format!("{token}\n"))?;
    Ok((token, Origin::Made(path)))
}

/// Finds the key that wraps the keys of encrypted volumes, or makes it where no file is named.
///
/// # Errors
/// When it is no key, the file is open to others, or it cannot be read or written.
pub fn load_master_key(data_dir: &Path, named: Option<&Path>) -> Result<MasterKey> {
    let path = named.map_or_else(|| data_dir.join(MASTER_KEY_NAME), Path::to_owned);
    if named.is_none() && !path.exists() {
        let digits = random_text(2 * MASTER_KEY_BYTES, b"0123456789abcdef")?;
        write(data_dir, &path, &format!("{digits}\n"))?;
        tracing::info!(file = %path.display(), "made the master key of encrypted volumes; keep a copy of it elsewhere");
    }
    let digits = read_private(&path)?;
    let mut key = [0; MASTER_KEY_BYTES];
    let decoded = hex::decode_to_slice(digits.trim(), &mut key);
    decoded.with_context(|| format!("{} does not hold 64 hexadecimal digits", path.display()))?;
    Ok(MasterKey::new(key))
}

/// A token has to fit a header, and not to be guessed.
///
/// # Errors
/// When it is too short or too long, or holds a blank or a character that is not printable.
pub fn check_token(token: &str) -> Result<()> {
    ensure!(
        token.bytes().all(|b| b.is_ascii_graphic())
            && (TOKEN_CHARS_MIN..=256).contains(&token.len()),
        "a token has {TOKEN_CHARS_MIN} to 256 printable characters without blanks"
    );
    Ok(())
}

fn from_variables(
    access: Option<String>,
    secret: Option<String>,
) -> Result<Option<RootCredentials>> {
    let given = |value: Option<String>| value.filter(|text| !text.is_empty());
    match (given(access), given(secret)) {
        (Some(access_key), Some(secret_key)) => {
            check_access_key(&access_key).with_context(|| ACCESS_KEY_VAR.to_owned())?;
            Ok(Some(RootCredentials {
                access_key,
                secret_key,
            }))
        }
        (None, None) => Ok(None),
        _ => bail!("set both {ACCESS_KEY_VAR} and {SECRET_KEY_VAR}, or neither"),
    }
}

/// An access key has to fit a signature's credential scope.
///
/// # Errors
/// When it is empty, too long, or holds a character that the scope gives meaning to.
pub fn check_access_key(key: &str) -> Result<()> {
    let plain = key
        .bytes()
        .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b',' | b'='));
    ensure!(
        plain && (3..=128).contains(&key.len()),
        "an access key has 3 to 128 printable characters without '/', ',' and '='"
    );
    Ok(())
}

/// Reads a file that only its owner can.
fn read_private(path: &Path) -> Result<String> {
    let shown = path.display();
    let mode = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
    let mode = mode.permissions().mode() & 0o777;
    let others = mode & OTHERS_MODE;
    ensure!(
        others == 0,
        "{shown} can be read by others (mode {mode:03o}); run: chmod 600 {shown}"
    );
    std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))
}

fn read(path: &Path) -> Result<RootCredentials> {
    let shown = path.display();
    let text = read_private(path)?;
    let keys: RootCredentials =
        toml::from_str(&text).with_context(|| format!("{shown} is malformed"))?;
    check_access_key(&keys.access_key).with_context(|| format!("access_key in {shown}"))?;
    ensure!(
        !keys.secret_key.is_empty(),
        "secret_key in {shown} is empty"
    );
    Ok(keys)
}

fn write(data_dir: &Path, path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let written = || -> Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(data_dir)?.sync_all()?;
        Ok(())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Text of independent random characters. The alphabet's length divides 256: no character is
/// likelier than another.
fn random_text<const N: usize>(chars: usize, alphabet: &[u8; N]) -> Result<String> {
    const { assert!(256 % N == 0) };
    let mut bytes = vec![0; chars];
    fill_random(&mut bytes)?;
    Ok(bytes
        .iter()
        .map(|b| char::from(alphabet[usize::from(*b) % N]))
        .collect())
}

/// A number that no other start has had: request and upload ids come from it.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn random_seed() -> Result<u64> {
    let mut bytes = [0; 8];
    fill_random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn fill_random(bytes: &mut [u8]) -> Result<()> {
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(bytes))
        .context("cannot read /dev/urandom")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (made, origin) = load(dir.path()).unwrap();
        let Origin::Made(path) = origin else {
            panic!("keys are made at the first start")
        };
        assert_eq!((made.access_key.len(), made.secret_key.len()), (20, 40));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let (again, origin) = load(dir.path()).unwrap();
        assert!(made == again && matches!(origin, Origin::File));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        load(dir.path()).unwrap();
        let path = dir.path().join(NAME);
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = load(dir.path()).err().unwrap().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn the_token_is_made_once_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (made, origin) = load_token(dir.path()).unwrap();
        let Origin::Made(path) = origin else {
            panic!("the token is made at the first start")
        };
        check_token(&made).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let (again, origin) = load_token(dir.path()).unwrap();
        assert!(made == again && matches!(origin, Origin::File));
        std::fs::write(&path, "short\n").unwrap();
        let error = format!("{:#}", load_token(dir.path()).err().unwrap());
        assert!(
            error.contains("root-token") && error.contains("16 to 256"),
            "{error}"
        );
    }

    #[test]
    fn half_of_the_environment_is_an_error() {
        let text = |s: &str| Some(s.to_owned());
        assert!(from_variables(text("abc"), None).is_err());
        assert!(from_variables(None, text("s")).is_err());
        assert!(from_variables(text("a/c"), text("s")).is_err());
        assert!(from_variables(text(""), text("")).unwrap().is_none());
        let keys = from_variables(text("abc"), text("s")).unwrap().unwrap();
        assert_eq!(
            (keys.access_key.as_str(), keys.secret_key.as_str()),
            ("abc", "s")
        );
    }
}
