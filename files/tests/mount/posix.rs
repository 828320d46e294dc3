//! The same operations on a bare directory and through the mount.

use crate::laptop::Laptop;
use crate::operations::run_all;

#[test]
fn operations_through_the_mount_have_the_results_that_they_have_in_the_pod() {
    let bare = tempfile::tempdir().unwrap();
    let served = tempfile::tempdir().unwrap();
    let laptop = Laptop::new(served.path());
    let expected = run_all(bare.path());
    let found = run_all(&laptop.path());
    let mut differ = Vec::new();
    for (expected, found) in expected.iter().zip(&found) {
        if expected != found {
            differ.push(format!("bare:  {expected}\nmount: {found}"));
        }
    }
    assert!(
        differ.is_empty(),
        "{} differ:\n{}",
        differ.len(),
        differ.join("\n")
    );
    assert_eq!(expected.len(), found.len());
    assert!(expected.len() > 100, "only {} operations", expected.len());
}
