//! Replays what a fuzzer has found, and what it starts from, without one.

use std::fs;
use std::path::Path;

use kvpn_fuzz_cases::CASES;

#[test]
fn kept_inputs_do_no_harm() {
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../regressions");
    for (name, case) in CASES {
        let mut replayed = 0;
        for file in fs::read_dir(regressions.join(name)).unwrap() {
            let path = file.unwrap().path();
            // Shown only when the test fails: then the last is the culprit.
            eprintln!("{}", path.display());
            case(&fs::read(&path).unwrap());
            replayed += 1;
        }
        assert!(replayed > 0, "{name} has no inputs");
    }
}

#[test]
fn random_bytes_do_no_harm() {
    let mut state = 0x5eed_u64;
    for (name, case) in CASES {
        eprintln!("{name}");
        for length in 0..400 {
            let input: Vec<u8> = std::iter::repeat_with(|| {
                // xorshift64 (Marsaglia).
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .take(length)
            .collect();
            case(&input);
        }
    }
}

#[test]
fn every_case_has_a_target() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets");
    let mut files: Vec<String> = fs::read_dir(targets)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(files, CASES.map(|(name, _)| name));
}
