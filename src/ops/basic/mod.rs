//! Operators that act on every token by itself.

pub mod adamw;
pub mod broadcast;
pub mod elementwise;
pub mod lerp;
pub mod linear;
pub mod lm_head;
pub mod moe;
pub mod norm;
pub mod normalize;
pub mod paired_softmax;
pub mod per_head_linear;
pub mod polynomial;
pub mod rope;
pub mod row_max;
pub mod shape;
pub mod softmax;
pub mod stabilise;
pub mod statistics;
pub mod unary;
