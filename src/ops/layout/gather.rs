//! Rows of a tensor in another order, on any device: how formulas lay out documents and columns of keys.

use crate::Result;
use candle_core::{DType, Device, Tensor};

/// Where each row of the new order comes from; rows that come from nowhere are zero. Gradients flow back to the source.
pub(crate) struct Gather {
    /// None: the rows stay as they are.
    index: Option<Tensor>,
    rows: usize,
    /// Some rows come from nowhere: the index points at a row of zeros behind the source.
    zeros: bool,
}

impl Gather {
    /// From a source of `rows` rows.
    pub fn new(rows: usize, from: &[Option<usize>], device: &Device) -> Result<Self> {
        let zeros = from.iter().any(Option::is_none);
        let same = from.len() == rows && from.iter().enumerate().all(|(i, row)| *row == Some(i));
        let index = || -> Result<Tensor> {
            let index: Vec<u32> = from.iter().map(|row| row.unwrap_or(rows) as u32).collect();
            Ok(Tensor::from_vec(index, from.len(), device)?)
        };
        Ok(Gather { index: if same { None } else { Some(index()?) }, rows: from.len(), zeros })
    }

    /// `x` [B, T, ..], whose B T rows are the source -> [rows, ..].
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.flatten(0, 1)?;
        let Some(index) = &self.index else { return Ok(x) };
        let mut dims = x.dims().to_vec();
        dims[0] = self.rows;
        if dims.contains(&0) {
            return Ok(Tensor::zeros(dims, x.dtype(), x.device())?);
        }
        let x = if self.zeros {
            let mut zero = x.dims().to_vec();
            zero[0] = 1;
            Tensor::cat(&[&x, &Tensor::zeros(zero, x.dtype(), x.device())?], 0)?
        } else {
            x.contiguous()?
        };
        Ok(x.index_select(index, 0)?)
    }
}

/// Yes or no for every element of `shape`, as `where_cond` takes it.
pub(crate) fn mask(yes: Vec<bool>, shape: &[usize], device: &Device) -> Result<Tensor> {
    let yes: Vec<u8> = yes.into_iter().map(u8::from).collect();
    Ok(Tensor::from_vec(yes, shape, device)?)
}

/// `x` where `mask`, of as many dimensions, says yes; zero elsewhere, whatever stands there, and no gradient.
pub(crate) fn only(mask: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(mask.broadcast_as(x.shape())?.where_cond(x, &x.zeros_like()?)?)
}

/// bf16 and f16 as f32, which all formulas and kernels compute in.
pub(crate) fn widened(x: &Tensor) -> Result<Tensor> {
    Ok(if matches!(x.dtype(), DType::BF16 | DType::F16) { x.to_dtype(DType::F32)? } else { x.clone() })
}
