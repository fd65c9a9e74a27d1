//! A disk image with programs of the host, for a guest that has none but busybox.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::GuestError;

/// Where the image's file system has its parts.
const LIBRARIES: &str = "lib";

/// Makes an image with a program of the host and all that it is linked to. A guest that has mounted it at
/// `/tools` runs it by what [`command`] says.
///
/// # Errors
/// When the program is not there, or the image cannot be made.
pub fn image(program: &Path, image: &Path, mib: u32) -> Result<(), GuestError> {
    let files = image.with_extension("files");
    let libraries = files.join(LIBRARIES);
    let make = format!("make {}", libraries.display());
    std::fs::create_dir_all(&libraries).map_err(GuestError::io(make))?;
    let said = run(Command::new("ldd").arg(program))?;
    for library in linked(&said) {
        copy(&library, &libraries)?;
    }
    copy(program, &files)?;
    let size = format!("{mib}M");
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-d"])
        .arg(&files)
        .arg(image)
        .arg(size);
    run(&mut make)?;
    let forget = format!("remove {}", files.display());
    std::fs::remove_dir_all(&files).map_err(GuestError::io(forget))
}

/// How a guest runs a program of an image.
pub fn command(program: &str) -> String {
    let libraries = format!("/tools/{LIBRARIES}");
    format!("{libraries}/ld-linux-x86-64.so.2 --library-path {libraries} /tools/{program}")
}

/// The files in what `ldd` prints: `name => file (address)`, or `file (address)` for the loader.
fn linked(said: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let named = line.split("=>").last()?.split_whitespace().next()?;
        named.starts_with('/').then(|| PathBuf::from(named))
    };
    said.lines().filter_map(file).collect()
}

fn copy(file: &Path, to: &Path) -> Result<(), GuestError> {
    let name = file.file_name().unwrap_or_default();
    let copied = std::fs::copy(file, to.join(name));
    copied
        .map(drop)
        .map_err(GuestError::io(format!("copy {}", file.display())))
}

fn run(command: &mut Command) -> Result<String, GuestError> {
    let what = format!("run {command:?}");
    let output = command.output().map_err(GuestError::io(what.clone()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(GuestError::Console { what, said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_is_linked_to_is_found() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibaio.so.1 => /lib/x/libaio.so.1 (0x1)\n\
                    \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x2)\n";
        let found = linked(said);
        let wanted = ["/lib/x/libaio.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, wanted.map(PathBuf::from));
    }
}
