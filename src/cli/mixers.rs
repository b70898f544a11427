//! `subquad mixers`

use super::format::{self, Align, table};
use super::mechanism::{Mechanism, Place};
use super::opened::Opened;
use super::printer::Printer;
use crate::Result;
use crate::mixer::{self, MIXERS};

/// List the mechanisms that can replace softmax attention, or explain one with its options
#[derive(clap::Args)]
pub(super) struct Args {
    /// The mixer to explain
    name: Option<String>,
    /// Compute state and parameters for this model: a folder, a run, or builtin:NAME [default: the sizes of Llama 3.2 1B]
    #[arg(long = "for", value_name = "MODEL")]
    model: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let one = self.name.as_deref().map(mixer::known).transpose()?;
        let place = match &self.model {
            Some(model) => Place::of(model, &Opened::open(model, None)?.spec),
            None => Place::example(),
        };
        match (one, self.json) {
            (Some(one), json) => {
                let mechanism = Mechanism::new(one, &place)?;
                if json { printer.json(&mechanism) } else { printer.data(mechanism.explained(&place)) }
            }
            (None, json) => {
                let all = MIXERS.iter().map(|m| Mechanism::new(m, &place)).collect::<Result<Vec<_>>>()?;
                if json { printer.json(&all) } else { printer.data(listed(&all, &place)) }
            }
        }
    }
}

/// A heading, then a block of lines for each, its first one a row of the table that all first lines make.
fn listed(all: &[Mechanism], place: &Place) -> String {
    let head = ["", "state of a head", "adds to a layer"].map(String::from).to_vec();
    let row = |m: &Mechanism| vec![m.name.to_string(), m.state_bytes_per_head.bytes(), m.added_parameters.count()];
    let rows: Vec<Vec<String>> = [head].into_iter().chain(all.iter().map(row)).collect();
    let rows = table(&[Align::Left, Align::Right, Align::Right], &rows);
    let mut rows = rows.lines();
    let heading = format!(
        "Without a window, defaults, in {}. A head's state has one size, whatever the length of the text; softmax \
         keeps {} of keys and values for every token. `subquad mixers NAME` explains one.",
        place.words(),
        format::bytes(place.softmax_bytes_per_head_and_token() as u64),
    );
    let mut out = format::wrapped(&heading, "", "");
    out += &format!("\n{}\n", rows.next().unwrap_or_default());
    for (mechanism, row) in all.iter().zip(rows) {
        out += &format!("\n{row}\n");
        for text in [mechanism.summary, mechanism.formula, mechanism.paper] {
            out += &format::wrapped(text, "  ", "    ");
        }
    }
    out
}
