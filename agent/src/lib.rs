pub mod cli;
pub mod hbone;
pub mod identity;
pub mod control;
pub mod mesh;
