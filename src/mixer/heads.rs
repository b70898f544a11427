//! What a layer gives its mixer.

use crate::ops::attention::Scores;
use crate::ops::rope::{Angles, rope};
use crate::ops::{Documents, Var};
use crate::{Error, Result};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A layer's projections of T tokens, and where the tokens stand.
pub struct LayerInputs {
    /// The layer's normalised input [B, T, D], which gates are made of.
    input: Option<Var>,
    /// [B, T, H, K], before RoPE.
    pub q: Var,
    /// [B, T, G, K], before RoPE.
    pub k: Var,
    /// [B, T, G, V]
    pub v: Var,
    angles: Option<Arc<Angles>>,
    rotated: OnceCell<(Var, Var)>,
    pub documents: Arc<Documents>,
    /// How the teacher's attention makes scores of q and k after RoPE; 1 / sqrt K unless said otherwise.
    pub scores: Scores,
}

impl LayerInputs {
    /// Projections without input and positions: all that a mixer needs which looks at nothing else.
    pub fn new(q: Var, k: Var, v: Var) -> Result<Self> {
        let (batch, tokens, _, width) = q.value().dims4()?;
        let documents = Documents::whole(batch, tokens);
        let scores = (1.0 / (width as f32).sqrt()).into();
        Ok(LayerInputs { input: None, q, k, v, angles: None, rotated: OnceCell::new(), documents, scores })
    }

    /// The same with the layer's input and the angles of its tokens' positions (None: a layer without RoPE).
    pub fn of_layer(self, input: Var, angles: Option<Arc<Angles>>) -> Self {
        LayerInputs { input: Some(input), angles, rotated: OnceCell::new(), ..self }
    }

    /// The same with several documents in a row, or padding.
    pub fn in_documents(self, documents: Arc<Documents>) -> Self {
        LayerInputs { documents, ..self }
    }

    /// The same with scores of another scale, or capped.
    pub fn scored(self, scores: Scores) -> Self {
        LayerInputs { scores, ..self }
    }

    /// q and k after RoPE, computed once.
    pub fn rotated(&self) -> Result<&(Var, Var)> {
        if self.rotated.get().is_none() {
            let both = (self.turn(&self.q)?, self.turn(&self.k)?);
            // Nobody else can have filled it in between: cells are not shared between threads.
            let _ = self.rotated.set(both);
        }
        Ok(self.rotated.get().expect("just filled"))
    }

    /// `x` [B, T, any, K] after RoPE at the tokens' positions; as it is in a layer without.
    pub fn turn(&self, x: &Var) -> Result<Var> {
        self.angles.as_ref().map_or_else(|| Ok(x.clone()), |angles| rope(x, angles))
    }

    /// The layer's normalised input.
    pub fn input(&self) -> Result<&Var> {
        self.input.as_ref().ok_or_else(|| Error::Internal("this mixer needs the layer's input".into()))
    }

    /// B and T.
    pub fn size(&self) -> Result<(usize, usize)> {
        let (batch, tokens, ..) = self.q.value().dims4()?;
        Ok((batch, tokens))
    }
}

/// The tensors of one layer's mixer by their own names, bound to a tape where they train.
#[derive(Default)]
pub struct Params(pub BTreeMap<String, Var>);

impl Params {
    pub fn get(&self, name: &str) -> Result<&Var> {
        self.0.get(name).ok_or_else(|| Error::Internal(format!("mixer tensor `{name}` is not bound")))
    }
}
