//! Operations of POSIX, done in the pod by the app's user and through the mount by the
//! laptop's.
//!
//! One is left out of the table (`is_owner` in files/tests/mount/operations.rs): to link a
//! symbolic link, which the laptop's kernel lets only its owner do (fs.protected_hardlinks),
//! and the owner is the pod's user.

use anyhow::{Result, ensure};

use super::shop::{NAMESPACE, Shop, directory, script};
use crate::support::Developer;

#[test]
fn operations_have_the_results_that_they_have_in_the_pod() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let at = directory(&developer)?;
    let mount = ["intercept", "web", "--port", "8080", "--mount", &at];
    developer.kvpn(mount)?.success()?;
    // An emptyDir, and a directory of the node.
    for volume in ["data", "host"] {
        let there = shop.in_pod(&format!("kvpn-posix /{volume}/there"))?;
        let here = script(&developer, &format!("kvpn-posix {at}/{volume}/here"))?.success()?;
        let pairs = there.lines().zip(here.stdout.lines());
        let differ: Vec<String> = pairs
            .filter(|(there, here)| there != here)
            .map(|(there, here)| format!("pod:    {there}\nlaptop: {here}"))
            .collect();
        ensure!(differ.is_empty(), "{volume}:\n{}", differ.join("\n"));
        let counts = [&there, &here.stdout].map(|lines| lines.lines().count());
        ensure!(counts[0] == counts[1] && counts[0] > 100, "{counts:?}");
    }
    Ok(())
}
