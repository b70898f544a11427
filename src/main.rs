//! The program: everything is in [`subquad::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    subquad::ops::cpu::allocator::keep_freed_memory();
    subquad::cli::run()
}
