//! The command line: one file per command, one `Printer` that decides what goes where.
//!
//! Data goes to stdout, everything for people to stderr. Exit status: 0 done, 1 the input was wrong, 2 we failed, 130
//! interrupted; a reader that closes our output early is no failure.

mod architecture;
mod check;
mod completions;
mod convert;
mod evaluate;
mod export;
mod format;
mod generate;
mod inspect;
mod logging;
mod mechanism;
mod mixers;
mod opened;
mod plan;
mod printer;
mod progress;
mod push;
mod recipes;
mod schema;
mod stop;
mod sweep;
mod teachers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser, Subcommand};

use crate::{Error, Result};
use printer::Printer;

/// Turns pretrained softmax transformers into linear-time ones.
#[derive(Parser)]
#[command(name = "subquad", version, max_term_width = 100, arg_required_else_help = true, after_help = START)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print errors and data only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Log what is done (-v) and its details (-vv); the variable RUST_LOG selects modules
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Do not use the network; read the Hub cache only (same as HF_HUB_OFFLINE=1)
    #[arg(long, global = true)]
    offline: bool,
}

const START: &str = "Start with: subquad convert quickstart";

#[derive(Subcommand)]
enum Command {
    Convert(convert::Args),
    Sweep(sweep::Args),
    Plan(plan::Args),
    Check(check::Args),
    Inspect(inspect::Args),
    Evaluate(evaluate::Args),
    Generate(generate::Args),
    Export(export::Args),
    Push(push::Args),
    Mixers(mixers::Args),
    Teachers(teachers::Args),
    Recipes(recipes::Args),
    Schema(schema::Args),
    Completions(completions::Args),
}

impl Command {
    fn run(&self, printer: &Printer) -> Result<()> {
        match self {
            Command::Convert(args) => args.run(printer),
            Command::Sweep(args) => args.run(printer),
            Command::Plan(args) => args.run(printer),
            Command::Check(args) => args.run(printer),
            Command::Inspect(args) => args.run(printer),
            Command::Evaluate(args) => args.run(printer),
            Command::Generate(args) => args.run(printer),
            Command::Export(args) => args.run(printer),
            Command::Push(args) => args.run(printer),
            Command::Mixers(args) => args.run(printer),
            Command::Teachers(args) => args.run(printer),
            Command::Recipes(args) => args.run(printer),
            Command::Schema(args) => args.run(printer),
            Command::Completions(args) => args.run(printer, &mut Cli::command()),
        }
    }
}

/// The whole program: reads the arguments, runs the command, reports what went wrong.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // A closed pipe behind `--help` is no failure; nor can anything be said about a closed stderr.
            let _ = message.print();
            return ExitCode::from(u8::from(message.use_stderr()));
        }
    };
    let printer = Printer::new(cli.quiet);
    if cli.offline {
        crate::hub::set_offline();
    }
    logging::start(cli.verbose, &printer);
    stop::on_interrupt(&printer);
    stop::report_panics(&printer);
    match catch_unwind(AssertUnwindSafe(|| cli.command.run(&printer))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if printer::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            match (&error, &cli.command) {
                // Only conversions can be continued.
                (Error::Interrupted, Command::Convert(_) | Command::Sweep(_)) => printer.error(&error),
                (Error::Interrupted, _) => printer.note("interrupted"),
                _ => printer.error(&error),
            }
            ExitCode::from(error.exit_code())
        }
        // The panic hook has reported it.
        Err(_) => ExitCode::from(2),
    }
}
