//! What the toolbox image holds: Debian's curl, dig, bash, nc and tools for files with the
//! libraries that they load, and the resolvers of Go and of musl and kvpn-posix, which
//! laptops have too.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::images::{self, Files};
use super::layout::Layout;
use crate::Cmd;

const PROGRAMS: &[(&str, &str)] = &[
    ("/bin/bash", "bash"),
    ("/bin/bash", "sh"),
    ("/bin/cat", "cat"),
    ("/bin/dd", "dd"),
    ("/bin/ln", "ln"),
    ("/bin/ls", "ls"),
    ("/bin/mkdir", "mkdir"),
    ("/bin/sleep", "sleep"),
    ("/bin/tar", "tar"),
    ("/usr/bin/find", "find"),
    ("/usr/bin/md5sum", "md5sum"),
    ("/usr/bin/sort", "sort"),
    ("/usr/bin/stat", "stat"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/dig", "dig"),
    ("/bin/nc.openbsd", "nc"),
];

/// Resolvers by the names of their programs; the C library's is getent.
const RESOLVERS: [&str; 2] = ["goresolve", MUSL_RESOLVER];

const MUSL_RESOLVER: &str = "muslresolve";

/// Compiles musl's resolver, unless it is there.
pub(crate) fn build_musl_resolver(layout: &Layout) -> Result<()> {
    let source = layout.tests().join("images/toolbox/muslresolve.c");
    images::compile("musl-gcc", &source, &layout.tool(MUSL_RESOLVER))
}

/// The image's files, and their names in the build context.
pub(crate) fn files(layout: &Layout) -> Result<Files> {
    let resolvers = RESOLVERS.map(|name| (layout.tool(name), format!("rootfs/usr/bin/{name}")));
    let mut files = Files::from(resolvers);
    let posix = layout.binary("kvpn-posix");
    files.push((posix, "rootfs/usr/bin/kvpn-posix".to_owned()));
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
