//! The loop shows that it turns, and only while it does.

use std::sync::mpsc;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_loop_that_turns_answers_whatever_it_waits_for() {
    let mut pulse = None;
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    let bench = bench_with(kernel, link, |reconciler| pulse = Some(reconciler.pulse()));
    let pulse = pulse.unwrap();
    pulse.check().await;
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease(OWN, 1)]);
    bench.settle().await;
    pulse.check().await;
    // Neither a kernel that answers nothing useful nor a lack of devices is a hang.
    bench.kernel.fail_dumps(Some(libc::EIO));
    bench.kernel.delete_link("tun0");
    bench.settle().await;
    pulse.check().await;
    assert!(bench.status.borrow().device_problem().is_some());
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
    // Nobody waits for a loop that has ended.
    pulse.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_hangs_does_not() {
    let mut pulse = None;
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    let (hangs, hung) = mpsc::channel();
    let (goes_on, waits) = mpsc::channel::<()>();
    kernel.refuse(move |_| {
        let _ = hangs.send(());
        // It ends once the test has.
        let _ = waits.recv();
        None
    });
    let bench = bench_with(kernel, link, |reconciler| pulse = Some(reconciler.pulse()));
    let pulse = pulse.unwrap();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease(OWN, 1)]);
    tokio::task::spawn_blocking(move || hung.recv().unwrap()).await.unwrap();
    let check = pulse.check();
    futures::pin_mut!(check);
    assert!(check.as_mut().now_or_never().is_none(), "the loop is inside of a pass");
    drop(goes_on);
    check.await;
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
}
