//! Fuzzes what a signing request may ask for, signed rightly.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::attributes(data));
