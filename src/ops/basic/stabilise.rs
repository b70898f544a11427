//! The stabiliser of an exponential input gate (xLSTM, arXiv 2405.04517): a running maximum m that keeps e^i in range.
//!
//! ```text
//! m_t = max(lf_t + m_{t-1}, i_t)      g_t = lf_t + m_{t-1} - m_t <= 0      w_t = e^(i_t - m_t) <= 1
//! ```
//!
//! with lf the log forget gate. A recurrence with decay g and writes weighed by w carries e^(-m) times the state that
//! one with decay lf and weights e^i would carry. Sequential, one number per token and state; in f64 inside a call.

use crate::Result;
use crate::ops::cpu::{HeadsView, Output, Slice};
use crate::ops::documents::Documents;
use crate::ops::tape::{Var, record};
use candle_core::Tensor;
use std::sync::Arc;

/// What [`stabilise`] returns; zero at padding.
pub struct Stabilised {
    /// g, [B, T, N, 1].
    pub gate: Var,
    /// w, [B, T, N, 1].
    pub weight: Var,
    /// m, [B, T, N, 1].
    pub maximum: Var,
    /// m after the last token, [B, N].
    pub last: Var,
}

/// `forget` (log gates <= 0) and `input` [B, T, N, 1], and the maximum before, `before` [B, N] (zero at the start of a
/// document). The gradient of a maximum goes to the larger argument, to `forget` if they are equal.
pub fn stabilise(forget: &Var, input: &Var, before: &Var, documents: &Arc<Documents>) -> Result<Stabilised> {
    let (batch, tokens, states, width) = forget.value().dims4()?;
    let fits = width == 1
        && input.value().dims() == forget.value().dims()
        && before.value().dims() == [batch, states]
        && (documents.batch(), documents.tokens()) == (batch, tokens);
    if !fits {
        let shapes = [forget, input, before].map(|x| x.value().dims().to_vec());
        return Err(candle_core::Error::Msg(format!("stabiliser of {shapes:?}, {documents:?}")).into());
    }
    let inputs = [forget, input, before];
    let values = inputs.map(|x| x.value().clone());
    let outputs = forward(&values, documents)?;
    let (weight, documents) = (outputs[1].clone(), documents.clone());
    let vars = record(&inputs, outputs, move |g| backward(&values, &weight, &documents, g))?;
    let [gate, weight, maximum, last] = vars.try_into().ok().expect("four outputs");
    Ok(Stabilised { gate, weight, maximum, last })
}

/// Runs through the tokens of one state in order: document, token, `forget`, `input`, maximum before and after.
fn walk(
    (b, n): (usize, usize),
    (forget, input): (&HeadsView, &HeadsView),
    before: f32,
    documents: &Documents,
    mut visit: impl FnMut(usize, usize, f64, f64, f64),
) -> f64 {
    let mut m = f64::from(before);
    for (d, document) in documents.row(b).iter().enumerate() {
        if d > 0 {
            m = 0.0;
        }
        let (forget, input) = (forget.head(b, n, document.clone()), input.head(b, n, document.clone()));
        for (i, t) in document.clone().enumerate() {
            let kept = f64::from(forget.row(i)[0]) + m;
            let entering = f64::from(input.row(i)[0]);
            m = kept.max(entering);
            visit(d, t, kept, entering, m);
        }
    }
    m
}

fn forward(x: &[Tensor; 3], documents: &Documents) -> Result<Vec<Tensor>> {
    let (forget, input, before) = (HeadsView::of(&x[0])?, HeadsView::of(&x[1])?, Slice::of(&x[2])?);
    let (states, tokens) = (forget.heads, forget.tokens);
    let [mut gate, mut weight, mut maximum] = [0; 3].map(|_| Output::padded(x[0].dims(), documents));
    let mut last = Output::unwritten(x[2].dims());
    for (row, &before) in before.iter().enumerate() {
        let (b, n) = (row / states, row % states);
        let end = walk((b, n), (&forget, &input), before, documents, |_, t, kept, entering, m| {
            let at = (b * tokens + t) * states + n;
            gate.data()[at] = (kept - m) as f32;
            weight.data()[at] = (entering - m).exp() as f32;
            maximum.data()[at] = m as f32;
        });
        last.data()[row] = end as f32;
    }
    [gate, weight, maximum, last].into_iter().map(Output::tensor).collect()
}

/// With M_t the whole gradient of m_t, backward over tokens: M_t = dm_t - dg_t - w_t dw_t + (what t + 1 passes on), of
/// which the larger argument takes all; lf_t and m_{t-1} also take dg_t, i_t takes w_t dw_t.
fn backward(
    x: &[Tensor; 3],
    weight: &Tensor,
    documents: &Documents,
    g: Vec<Option<Tensor>>,
) -> Result<Vec<Option<Tensor>>> {
    let (forget, input, before) = (HeadsView::of(&x[0])?, HeadsView::of(&x[1])?, Slice::of(&x[2])?);
    let (states, tokens) = (forget.heads, forget.tokens);
    let dims = [x[0].dims(), x[0].dims(), x[0].dims(), x[2].dims()];
    let up: Vec<Tensor> = g
        .into_iter()
        .zip(dims)
        .map(|(g, dims)| g.map_or_else(|| Output::zeros(dims).tensor(), Ok))
        .collect::<Result<_>>()?;
    let (dg, dw, dm, d_last) = (Slice::of(&up[0])?, Slice::of(&up[1])?, Slice::of(&up[2])?, Slice::of(&up[3])?);
    let weight = Slice::of(weight)?;
    let [mut d_forget, mut d_input, mut d_before] = x.each_ref().map(|x| Output::zeros(x.dims()));
    let mut steps = vec![];
    for (row, &before) in before.iter().enumerate() {
        let (b, n) = (row / states, row % states);
        steps.clear();
        walk((b, n), (&forget, &input), before, documents, |document, t, kept, entering, _| {
            steps.push((document, (b * tokens + t) * states + n, kept >= entering));
        });
        let mut carried = f64::from(d_last[row]);
        let mut later = steps.last().map_or(0, |s| s.0);
        for &(document, at, keeps) in steps.iter().rev() {
            if document != later {
                (later, carried) = (document, 0.0);
            }
            let (dg, entered) = (f64::from(dg[at]), f64::from(weight[at]) * f64::from(dw[at]));
            let total = f64::from(dm[at]) - dg - entered + carried;
            let (kept, won) = if keeps { (total, 0.0) } else { (0.0, total) };
            carried = dg + kept;
            d_forget.data()[at] = carried as f32;
            d_input.data()[at] = (entered + won) as f32;
        }
        // Without a document nothing stands between the maximum before and after; the first one begins from it.
        d_before.data()[row] = if later == 0 { carried as f32 } else { 0.0 };
    }
    Ok(vec![Some(d_forget.tensor()?), Some(d_input.tensor()?), Some(d_before.tensor()?)])
}
