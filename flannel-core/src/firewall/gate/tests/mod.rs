mod desk;
mod kernel;
