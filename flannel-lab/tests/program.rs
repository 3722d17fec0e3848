//! Whole programs in a sandbox, by the example.

use std::process::Command;

#[test]
fn the_example_runs_and_its_exit_code_comes_out() {
    // Cargo builds the examples before it runs the tests, next to them.
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/two_nodes");
    let output = Command::new(example).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text.matches("5 of 5 answered").count(), 2, "{text}");
}
