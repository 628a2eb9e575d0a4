pub mod capture;
pub mod mesh;
