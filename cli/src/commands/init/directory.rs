//! Programs in the working directory, by the files that they are known by.

use std::fs;
use std::path::Path;

/// The port that programs listen on unless something says another.
const USUAL_PORT: u16 = 8080;

/// A program, and how it may be run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Program {
    /// The name of its directory.
    pub(super) name: String,
    /// Its directory, where that is not the working directory.
    pub(super) directory: Option<String>,
    /// A line for a shell.
    pub(super) run: String,
    pub(super) port: u16,
}

/// The programs of a directory: in itself, and in those in it.
pub(super) fn programs(here: &Path) -> Vec<Program> {
    let name_of = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let own = name_of(here).and_then(|name| program(here, name, None));
    let entries = fs::read_dir(here).into_iter().flatten().flatten();
    let mut below: Vec<Program> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| {
            let name = name_of(&entry.path())?;
            match name.starts_with('.') {
                true => None,
                false => program(&entry.path(), name.clone(), Some(name)),
            }
        })
        .collect();
    below.sort_by(|one, other| one.name.cmp(&other.name));
    own.into_iter().chain(below).collect()
}

fn program(path: &Path, name: String, directory: Option<String>) -> Option<Program> {
    let run = command(path)?;
    Some(Program {
        name,
        directory,
        run,
        port: port(path).unwrap_or(USUAL_PORT),
    })
}

/// How what is in a directory is run.
fn command(path: &Path) -> Option<String> {
    let has = |name: &str| path.join(name).is_file();
    if let Some(web) = read(path, "Procfile")
        .lines()
        .find_map(|line| line.strip_prefix("web:"))
    {
        return Some(web.trim().to_owned());
    }
    if has("package.json") {
        return Some(node(path));
    }
    let known = [
        ("Cargo.toml", "cargo run"),
        ("go.mod", "go run ."),
        ("manage.py", "python manage.py runserver"),
        ("pyproject.toml", "python -m app"),
        ("requirements.txt", "python app.py"),
    ];
    let command = known.into_iter().find(|(file, _)| has(file))?.1;
    let is_workspace = command == "cargo run" && !read(path, "Cargo.toml").contains("[package]");
    (!is_workspace).then(|| command.to_owned())
}

/// The script that developers run, with what manages the packages.
fn node(path: &Path) -> String {
    let locks = [
        ("pnpm-lock.yaml", "pnpm"),
        ("yarn.lock", "yarn"),
        ("bun.lock", "bun"),
    ];
    let mut locks = locks.into_iter();
    let lock = locks.find(|(file, _)| path.join(file).is_file());
    let manager = lock.map_or("npm", |(_, manager)| manager);
    let package: serde_json::Value =
        serde_json::from_str(&read(path, "package.json")).unwrap_or_default();
    let has = |script: &&str| package["scripts"][script].is_string();
    let script = ["dev", "start"].into_iter().find(has).unwrap_or("start");
    format!("{manager} run {script}")
}

/// The port that a .env file or a Dockerfile tells.
fn port(path: &Path) -> Option<u16> {
    let of_env = read(path, ".env").lines().find_map(|line| {
        let line = line.trim().trim_start_matches("export ");
        let value = line.strip_prefix("PORT=")?;
        value.trim_matches(['"', '\'']).parse().ok()
    });
    let of_dockerfile = || {
        read(path, "Dockerfile").lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let is_expose = words.next()?.eq_ignore_ascii_case("EXPOSE");
            let port = words.next().filter(|_| is_expose)?;
            port.trim_end_matches("/tcp").parse().ok()
        })
    };
    of_env.or_else(of_dockerfile).filter(|port| *port != 0)
}

/// The text of a file; nothing where there is none.
fn read(path: &Path, name: &str) -> String {
    fs::read_to_string(path.join(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a directory with these files.
    fn found(files: &[(&str, &str)]) -> Vec<(String, String, u16)> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = directory.path().join("shop").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let programs = programs(&directory.path().join("shop"));
        let told = programs.into_iter().map(|it| (it.name, it.run, it.port));
        told.collect()
    }

    #[test]
    fn programs_are_known_by_their_files() {
        for (files, run, port) in [
            (&[("go.mod", "")][..], "go run .", 8080),
            (
                &[("Cargo.toml", "[package]"), (".env", "PORT=3000")],
                "cargo run",
                3000,
            ),
            (
                &[
                    ("package.json", r#"{"scripts": {"dev": "vite"}}"#),
                    ("yarn.lock", ""),
                ],
                "yarn run dev",
                8080,
            ),
            (
                &[
                    ("package.json", "{"),
                    ("Dockerfile", "FROM a\nexpose 80/tcp\n"),
                ],
                "npm run start",
                80,
            ),
            (
                &[
                    ("Procfile", "web: ./run --all\n"),
                    ("go.mod", ""),
                    (".env", "PORT=x"),
                ],
                "./run --all",
                8080,
            ),
            (&[("manage.py", "")], "python manage.py runserver", 8080),
        ] {
            let expected = ("shop".to_owned(), run.to_owned(), port);
            assert_eq!(found(files), [expected], "{files:?}");
        }
    }

    #[test]
    fn programs_below_are_found_and_workspaces_are_none() {
        let files = [
            ("Cargo.toml", "[workspace]"),
            ("web/go.mod", ""),
            ("api/Cargo.toml", "[package]"),
            ("docs/index.md", ""),
            (".git/go.mod", ""),
        ];
        let names = found(&files).into_iter().map(|(name, _, _)| name);
        assert_eq!(names.collect::<Vec<_>>(), ["api", "web"]);
    }
}
