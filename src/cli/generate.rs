//! `subquad generate`

use std::time::Instant;

use super::format;
use super::opened::Opened;
use super::printer::Printer;
use crate::model::{Sampler, Session};
use crate::progress::check_interrupt;
use crate::{Error, Result};

/// Continue a prompt, greedily unless a temperature is given
///
/// The prompt and its continuation go to stdout as they are generated, figures to stderr. The settings in
/// the model's generation_config.json are not applied.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A folder, a run, builtin:NAME, or OWNER/NAME[@REVISION] on the Hub
    model: String,
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Sampling temperature. 0: greedy; 1: sample from the model's distribution
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Sample from the most likely tokens whose probabilities add up to this (nucleus sampling)
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = share, allow_negative_numbers = true)]
    top_p: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (0.0..=100.0).contains(&x) => Ok(x),
        _ => Err("a number from 0 to 100 is expected".into()),
    }
}

fn share(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("a number above 0, at most 1, is expected".into()),
    }
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let opened = Opened::open(&self.model, None)?.fetched(printer)?;
        let tokenizer = opened.tokenizer()?;
        let prompt = tokenizer.encode_prompt(&self.prompt)?;
        if prompt.is_empty() {
            return Err(Error::usage("the prompt is empty", "give the beginning of a text: `--prompt \"Once upon\"`"));
        }
        let loaded = opened.load()?;
        let mut session = Session::new(loaded.view());
        let mut sampler = Sampler::new(self.temperature, self.top_p, self.seed);
        let mut text = tokenizer.decoder();
        for &id in &prompt {
            let piece = text.push(id)?;
            printer.data(piece)?;
        }

        let began = Instant::now();
        let mut logits = session.feed(&prompt)?;
        let read = began.elapsed();
        let (began, mut made) = (Instant::now(), 0);
        let stopped = loop {
            if made == self.max_tokens {
                break Ok(());
            }
            if let Err(stop) = check_interrupt() {
                break Err(stop);
            }
            let id = sampler.next(&logits)?;
            if opened.spec.eos.contains(&id) {
                break Ok(());
            }
            made += 1;
            printer.data(text.push(id)?)?;
            if made < self.max_tokens {
                logits = session.feed(&[id])?;
            }
        };
        printer.data(text.finish()? + "\n")?;
        let seconds = began.elapsed().as_secs_f64().max(1e-9);
        printer.note(format_args!(
            "\nprompt: {} tokens in {}; then {} tokens at {} tokens/s; state {}",
            prompt.len(),
            format::duration(read),
            made,
            format::short(made as f64 / seconds),
            format::bytes(session.state_bytes() as u64),
        ));
        stopped
    }
}
