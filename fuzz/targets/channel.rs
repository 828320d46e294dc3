#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kvpn_fuzz_cases::channel(input));
