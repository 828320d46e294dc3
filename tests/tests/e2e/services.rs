//! The servers that people use, by their names in the cluster, over both families.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::services::{DATABASE, NAMESPACE, PASSWORD, USER};
use kvpn_tests::{Output, wait_for};

use crate::support::Developer;

/// A developer who is connected, and the servers.
fn connected() -> Result<Developer> {
    let mut developer = Developer::at(1)?;
    developer.lab.deploy_services()?;
    developer.connect()?;
    Ok(developer)
}

impl Developer {
    /// Runs a shell script at the laptop; any command that fails ends it.
    fn script(&self, script: &str) -> Result<Output> {
        let command = ["bash", "-euo", "pipefail", "-c", script];
        let login = self.laptop.user().cmd(command);
        login.deadline(Duration::from_secs(120)).run()?.success()
    }

    /// A server's addresses as the laptop resolves its name: IPv4, then IPv6.
    fn resolve(&self, name: &str) -> Result<[IpAddr; 2]> {
        let address = |database: &str| {
            let name = format!("{name}.{NAMESPACE}");
            let found = self.laptop.user().run(["getent", database, &name])?;
            let found = found.success()?.stdout;
            let first = found.split_whitespace().next();
            first
                .context("no address")?
                .parse()
                .context("read an address")
        };
        Ok([address("ahostsv4")?, address("ahostsv6")?])
    }
}

#[test]
fn postgres_copies_20_mb_both_ways() -> Result<()> {
    let developer = connected()?;
    for address in developer.resolve("postgres")? {
        let psql = format!(
            "psql -qX -v ON_ERROR_STOP=1 'host=postgres.{NAMESPACE} hostaddr={address} \
             user={USER} password={PASSWORD} dbname=postgres'"
        );
        developer.script(&format!(
            "base64 -w 99 /dev/urandom | head -c 20000000 >/tmp/sent || true
             {psql} -c 'DROP TABLE IF EXISTS lines' \
                -c 'CREATE TABLE lines (number serial, line text)'
             {psql} -c 'COPY lines (line) FROM STDIN' </tmp/sent
             {psql} -c 'COPY (SELECT line FROM lines ORDER BY number) TO STDOUT' >/tmp/received
             test $(wc -c </tmp/sent) = 20000000
             cmp /tmp/sent /tmp/received"
        ))?;
    }
    Ok(())
}

#[test]
fn redis_answers_200_000_pipelined_commands_in_order() -> Result<()> {
    let developer = connected()?;
    for address in developer.resolve("redis")? {
        let output = developer.script(&format!(
            r#"seq 100000 | awk '{{printf "SET key:%d value-%d\r\n", $1, $1}}' |
                 redis-cli -h {address} --pipe
               {{ seq 100000 | awk '{{printf "GET key:%d\r\n", $1}}'; printf 'QUIT\r\n'; }} |
                 nc redis.{NAMESPACE} 6379 >/tmp/received
               {{ seq 100000 | awk '{{value = "value-" $1; printf "$%d\r\n%s\r\n", length(value), value}}'
                 printf '+OK\r\n'; }} | cmp - /tmp/received"#
        ))?;
        ensure!(
            output.stdout.contains("errors: 0, replies: 100000"),
            "{}",
            output.stdout
        );
    }
    Ok(())
}

#[test]
fn nginx_serves_20_mb_by_http_1_and_http_2_alone_and_in_parallel() -> Result<()> {
    let developer = connected()?;
    for (version, flag, scheme) in [("1.1", "--http1.1", "http"), ("2", "--http2", "https")] {
        for family in ["-4", "-6"] {
            // The certificate is of the server's own making.
            let curl = format!("curl {family} -sSfk --max-time 60 {flag}");
            let url = format!("{scheme}://nginx.{NAMESPACE}/file");
            let output = developer.script(&format!(
                "sum=$({curl} {url}.sha256 | cut -d ' ' -f 1)
                 {curl} -w '%{{http_version}}\n' -o /tmp/file {url}
                 echo \"$sum  /tmp/file\" | sha256sum --check --quiet
                 cd /tmp
                 {curl} --parallel -o '#1.part' '{url}?[1-8]'
                 for number in 1 2 3 4 5 6 7 8; do
                   echo \"$sum  $number.part\" | sha256sum --check --quiet
                 done"
            ))?;
            ensure!(
                output.stdout.trim() == version,
                "{flag} was answered in {}",
                output.stdout
            );
        }
    }
    Ok(())
}

#[test]
fn mariadb_speaks_first_and_loads_20_mb() -> Result<()> {
    let developer = connected()?;
    for address in developer.resolve("mariadb")? {
        let client = format!(
            "mariadb --no-defaults --local-infile=1 -h {address} -u {USER} -p{PASSWORD} \
             --batch --skip-column-names {DATABASE}"
        );
        let output = developer.script(&format!(
            r#"base64 -w 99 /dev/urandom | head -c 20000000 >/tmp/sent || true
               {client} -e 'SELECT 6 * 7;
                 CREATE OR REPLACE TABLE bulk (number INT AUTO_INCREMENT PRIMARY KEY, line CHAR(99));
                 LOAD DATA LOCAL INFILE "/tmp/sent" INTO TABLE bulk (line)'
               {client} --quick -e 'SELECT line FROM bulk ORDER BY number' >/tmp/received
               test $(wc -c </tmp/sent) = 20000000
               cmp /tmp/sent /tmp/received"#
        ))?;
        ensure!(output.stdout.trim() == "42", "{}", output.stdout);
    }
    Ok(())
}

#[test]
fn knot_answers_with_datagrams_of_nearly_4_kb() -> Result<()> {
    const QUESTIONS: usize = 500;
    let developer = connected()?;
    for address in developer.resolve("knot")? {
        // A Service answers a moment after its pod is ready.
        wait_for("knot answers", Duration::from_secs(20), || {
            let dig =
                format!("dig @{address} +short +time=1 +tries=1 services.example SOA || true");
            let answer = developer.script(&dig)?.stdout;
            Ok(answer.contains("services.example").then_some(()))
        })?;
        let output = developer.script(&format!(
            "yes 'large.services.example TXT' | head -{QUESTIONS} >/tmp/questions || true
             dig @{address} +notcp +ignore +bufsize=4096 +time=2 +tries=1 -f /tmp/questions"
        ))?;
        let whole = output.stdout.matches("MSG SIZE  rcvd: 3885").count();
        eprintln!("{whole} of {QUESTIONS} answers over UDP from {address} are whole");
        let complaints = output.stdout.lines().filter(|line| line.starts_with(";; "));
        let complaints: BTreeSet<_> = complaints
            .filter(|line| line.contains("communications error") || line.contains("no servers"))
            .collect();
        ensure!(
            whole >= QUESTIONS * 99 / 100,
            "only {whole} are whole; dig said {complaints:?}"
        );
    }
    Ok(())
}
