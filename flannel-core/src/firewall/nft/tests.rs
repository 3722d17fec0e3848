mod kernel;
mod recorded;
mod rules;
