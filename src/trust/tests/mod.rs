//! Rules and pins, as tables and as stories.

mod access;
mod ageing;
mod hellos;
mod kept;
mod leaving;
mod world;
