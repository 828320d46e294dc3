//! What the toolbox image holds: Debian's curl, dig, bash and nc with the
//! libraries that they load.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::images::Files;
use crate::Cmd;

const PROGRAMS: &[(&str, &str)] = &[
    ("/bin/bash", "bash"),
    ("/bin/bash", "sh"),
    ("/bin/cat", "cat"),
    ("/bin/sleep", "sleep"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/dig", "dig"),
    ("/bin/nc.openbsd", "nc"),
];

/// The image's files, and their names in the build context.
pub(crate) fn files() -> Result<Files> {
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for (program, name) in PROGRAMS {
        files.push((PathBuf::from(program), format!("rootfs/usr/bin/{name}")));
        let linked = Cmd::new("ldd")
            .arg(program)
            .ok()
            .context("list the libraries")?;
        libraries.extend(parse_ldd(&linked));
    }
    files.extend(libraries.into_iter().map(|path| {
        let name = format!("rootfs{path}");
        (PathBuf::from(path), name)
    }));
    Ok(files)
}

/// Paths of libraries in the output of ldd.
fn parse_ldd(output: &str) -> BTreeSet<String> {
    let paths = output.lines().filter_map(|line| {
        let line = line.split_once("=>").map_or(line, |(_, path)| path);
        let path = line.split_whitespace().next()?;
        path.starts_with('/').then(|| path.to_owned())
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let output = "\tlinux-vdso.so.1 (0x00007ff)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse_ldd(output), expected.map(str::to_owned).into());
    }
}
