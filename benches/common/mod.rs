//! What the benches share.
#![allow(dead_code)]

#[path = "../../tests/common/models.rs"]
pub mod models;

/// A field of /proc/self/status in 10^6 bytes: `VmHWM`, the largest resident size, or `VmRSS`, the present one.
pub fn resident_mb(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).map_or(f64::NAN, |kb| kb * 1024.0 / 1e6)
}

/// The value after `--name` on the command line.
pub fn argument(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1).cloned())
}

/// Runs this bench again with `args` in a process of its own and returns what it prints.
pub fn child(args: &[&str]) -> String {
    let me = std::env::current_exe().expect("own path");
    let output = std::process::Command::new(me).args(args).output().expect("the measuring process starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}
