//! Numbers that a type cannot hold: found before anything is written, named by tensor and place.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::config::dtype_word;
use crate::checkpoint::place_in;
use crate::model::Model;
use crate::{Error, Result};

/// Bits of the smallest f32 that rounds to infinity: in f16 that is 65520, in bf16 3.396e38.
const F16: u32 = 0x477f_f000;
const BF16: u32 = 0x7f7f_8000;
const F32: u32 = 0x7f80_0000;

/// Refuses a teacher whose weights `dtype` cannot hold: known before anything is trained.
pub fn require_range(model: &Model, dtype: DType) -> Result<()> {
    if dtype == DType::F32 {
        return Ok(());
    }
    model.spec.stored().iter().try_for_each(|stored| require(&stored.name, &model.stored(stored)?, dtype))
}

/// Refuses a tensor that would not be finite as `dtype`.
pub(super) fn require(name: &str, tensor: &Tensor, dtype: DType) -> Result<()> {
    let limit = match dtype {
        DType::F16 => F16,
        DType::BF16 => BF16,
        _ => F32,
    };
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let beyond = |x: &f32| x.abs().to_bits() >= limit;
    let Some(at) = values.par_iter().position_first(beyond) else { return Ok(()) };
    let (value, place) = (values[at], place_in(tensor.dims(), at));
    if !value.is_finite() {
        return Err(Error::NonFinite { stage: "export".into(), step: 0, place: format!("`{name}` at {place:?}") });
    }
    let word = dtype_word(dtype).unwrap_or(dtype.as_str());
    let what =
        format!("tensor `{name}` holds {value} at {place:?}, which is infinite as {word}, so nothing was written");
    let other = if dtype == DType::F16 { "\"bf16\" or \"f32\"" } else { "\"f32\"" };
    Err(Error::usage(what, format!("set `export.dtype` to {other}; finished stages are not done again")))
}
