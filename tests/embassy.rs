//! Crates of the embassy project, unchanged, on the simulated Xen.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use domu::executor::{activity, spawn};
use domu::lifecycle::Reason;
use domu::sim::{End, Guest, Report};
use domu::{Domain, time};
use embassy_executor::{Spawner, raw};
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::channel::Channel;
use embassy_sync::signal::Signal;
use embassy_time::{Duration, Instant, Ticker, Timer, with_timeout};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A wait by this crate's own timers.
async fn sleep(duration: Duration) {
    time::sleep(std::time::Duration::from_nanos(duration.as_ticks())).await;
}

/// Runs a guest whose main must come to its end.
fn run<F: Future<Output = domu::Result>>(main: impl FnOnce(Domain) -> F) -> Report {
    Guest::new().run(main).powered_off()
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines_and_not_before() {
    let report = run(async |_| {
        let (start, own) = (Instant::now(), time::now());
        assert!(own.as_nanos() - start.as_ticks() < MS.as_ticks(), "a tick is a nanosecond");
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [5_u32, 1, 0, 3, 1]
            .into_iter()
            .map(|delay| {
                let order = Rc::clone(&order);
                spawn(async move {
                    let deadline = start + delay * MS;
                    Timer::at(deadline).await;
                    assert!(Instant::now() >= deadline);
                    order.borrow_mut().push(delay);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(*order.borrow(), [0, 1, 1, 3, 5]);
        assert!(start.elapsed() < 6 * MS);

        let mut ticker = Ticker::every(MS);
        let start = Instant::now();
        for tick in 1..=10 {
            ticker.next().await;
            assert!(start.elapsed() >= tick * MS && start.elapsed() < (tick + 1) * MS);
        }
        Ok(())
    });
    assert!(report.halts <= 20, "{} halts for 13 moments", report.halts);
}

/// A waker that counts.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn poll<F: Future>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

#[test]
fn a_timer_that_is_polled_a_thousand_times_is_registered_once() {
    run(async |_| {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut timer = pin!(Timer::after(MS));
        for _ in 0..1000 {
            assert!(poll(timer.as_mut(), &waker).is_pending());
        }
        // Ours, that of `waker`, and that of the one registration.
        assert_eq!(Arc::strong_count(&count), 3);
        sleep(2 * MS).await;
        assert_eq!((count.get(), Arc::strong_count(&count)), (1, 2));
        assert!(poll(timer, &waker).is_ready());
        sleep(MS).await;
        assert_eq!(count.get(), 1);
        Ok(())
    });
}

#[test]
fn of_several_timers_of_one_waker_the_earliest_wakes_and_the_others_ask_again() {
    run(async |_| {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let start = Instant::now();
        let mut timers = [3_u32, 1, 2].map(|delay| Timer::at(start + delay * MS));
        for passed in 1..=3 {
            let pending =
                timers.iter_mut().filter_map(|timer| poll(Pin::new(timer), &waker).is_pending().then_some(())).count();
            assert_eq!(pending, 4 - passed);
            assert_eq!(Arc::strong_count(&count), 3, "one registration");
            assert_eq!(count.get(), passed - 1);
            time::sleep_until(time::now() + std::time::Duration::from_millis(1)).await;
            assert_eq!(count.get(), passed, "woken for each moment");
        }
        assert!(timers.iter_mut().all(|timer| poll(Pin::new(timer), &waker).is_ready()));
        // Another waker is another waiter, also for the same moment.
        let others: Vec<_> = (0..3).map(|_| Arc::new(Count::default())).collect();
        let moment = Instant::now() + MS;
        for other in &others {
            assert!(poll(pin!(Timer::at(moment)), &Waker::from(Arc::clone(other))).is_pending());
        }
        sleep(2 * MS).await;
        assert!(others.iter().all(|other| other.get() == 1 && Arc::strong_count(other) == 1));
        Ok(())
    });
}

#[test]
fn what_dropped_timers_leave_behind_does_not_pile_up_nor_keep_the_domain_awake() {
    run(async |_| {
        // Miri is slow, and a few are as many to it.
        for _ in 0..if cfg!(miri) { 10 } else { 1000 } {
            let outcome = with_timeout(HOUR, Timer::after(Duration::from_micros(1))).await;
            assert_eq!(outcome, Ok(()));
        }
        let before = activity();
        sleep(2 * HOUR).await;
        let after = activity();
        assert!(after.halts - before.halts <= 3, "an hour's stale waker woke {} times", after.halts - before.halts);
        assert!(after.turns - before.turns <= 6);
        Ok(())
    });
}

/// How many wakers are kept by somebody else.
fn kept(wakers: &[Arc<Count>]) -> usize {
    wakers.iter().filter(|waker| Arc::strong_count(waker) > 1).count()
}

#[test]
fn timers_of_many_wakers_that_are_gone_are_given_up() {
    let tasks = if cfg!(miri) { 100 } else { 1000 };
    run(async |_| {
        let (mut gone, mut most) = (Vec::new(), 0);
        for _ in 0..tasks {
            let waker = Arc::new(Count::default());
            assert!(poll(pin!(Timer::after(HOUR)), &Waker::from(Arc::clone(&waker))).is_pending());
            gone.push(waker);
            domu::executor::yield_now().await;
            most = most.max(kept(&gone));
        }
        assert_eq!(most, 64);
        // Each of them was woken once at most.
        assert!(gone.iter().all(|waker| waker.get() <= 1));
        Ok(())
    });
}

#[test]
fn timers_of_many_tasks_that_wait_are_not_given_up() {
    let waiting: u32 = if cfg!(miri) { 100 } else { 1000 };
    run(async |_| {
        let polls = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..waiting)
            .map(|_| {
                let polls = Rc::clone(&polls);
                spawn(async move {
                    let mut timer = Timer::after(HOUR);
                    poll_fn(|context| {
                        polls.set(polls.get() + 1);
                        Pin::new(&mut timer).poll(context)
                    })
                    .await;
                })
            })
            .collect();
        // Others come and go meanwhile, and are given up, now and then together with the ones that wait.
        let mut gone = Vec::new();
        for _ in 0..4 * waiting {
            let waker = Arc::new(Count::default());
            assert!(poll(pin!(Timer::after(HOUR)), &Waker::from(Arc::clone(&waker))).is_pending());
            gone.push(waker);
            domu::executor::yield_now().await;
        }
        assert!(kept(&gone) <= waiting as usize);
        // At first, when all came at once, when others had become as many, four times, and at the end.
        assert!(polls.get() <= 7 * waiting, "{} polls of {waiting} tasks", polls.get());
        let start = Instant::now();
        for task in tasks {
            task.await;
        }
        assert!(start.elapsed() < HOUR && start.elapsed() > HOUR - 1000 * MS);
        Ok(())
    });
}

/// Sets a timer that is due whenever it is woken, until that has been often.
struct Again(AtomicUsize);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        if self.0.fetch_add(1, Ordering::Relaxed) < 10_000 {
            assert!(poll(pin!(Timer::at(Instant::MIN)), &Waker::from(self)).is_pending());
        }
    }
}

#[test]
fn a_waker_that_sets_a_timer_that_is_due_does_not_hold_a_turn() {
    run(async |_| {
        let again = Arc::new(Again(AtomicUsize::new(0)));
        Arc::clone(&again).wake();
        for turn in 1..=5 {
            domu::executor::yield_now().await;
            assert_eq!(again.0.load(Ordering::Relaxed), 1 + turn);
        }
        Ok(())
    });
}

#[test]
fn a_main_that_nothing_can_wake_is_told_after_its_last_stale_waker() {
    let report = Guest::new().run(async |_| {
        assert_eq!(with_timeout(1000 * MS, async { 7 }).await, Ok(7));
        let mut timer = Timer::after(1000 * MS);
        assert!(poll_fn(|context| Poll::Ready(Pin::new(&mut timer).poll(context))).await.is_pending());
        drop(timer);
        pending::<()>().await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("nothing is left that could wake it"));
    assert!((1_000_000_000..1_100_000_000).contains(&report.elapsed_ns), "{} ns", report.elapsed_ns);
    assert!(report.halts <= 3, "{} halts", report.halts);
}

#[test]
fn a_timeout_ends_what_takes_too_long() {
    run(async |_| {
        let start = Instant::now();
        assert!(with_timeout(5 * MS, pending::<()>()).await.is_err());
        assert!(start.elapsed() >= 5 * MS && start.elapsed() < 6 * MS);
        Ok(())
    });
}

#[test]
fn outside_of_a_domain_there_is_no_time_and_nothing_panics() {
    assert_eq!(Instant::now().as_ticks(), 0);
    let count = Arc::new(Count::default());
    assert!(poll(pin!(Timer::after(MS)), &Waker::from(Arc::clone(&count))).is_pending());
    assert_eq!(Arc::strong_count(&count), 1);
}

type Numbers = Channel<CriticalSectionRawMutex, u32, 2>;

/// Answers each number with its double until it is zero.
#[embassy_executor::task(pool_size = 16)]
async fn doubles(requests: Rc<Numbers>, answers: Rc<Numbers>) {
    loop {
        let number = requests.receive().await;
        Timer::after(MS).await;
        answers.send(2 * number).await;
        if number == 0 {
            break;
        }
    }
}

/// A conversation of a task of ours with one of embassy's.
async fn converse(numbers: u32) {
    let (requests, answers) = (Rc::new(Numbers::new()), Rc::new(Numbers::new()));
    let theirs = (Rc::clone(&requests), Rc::clone(&answers));
    let tasks = spawn(domu::embassy::run(|spawner| spawner.spawn(doubles(theirs.0, theirs.1).unwrap())));
    let start = Instant::now();
    let asks = spawn(async move {
        for number in (0..numbers).rev() {
            requests.send(number).await;
        }
    });
    for number in (0..numbers).rev() {
        assert_eq!(answers.receive().await, 2 * number);
    }
    asks.await;
    assert!(start.elapsed() >= numbers * MS);
    // The task's end drops what it has, and gives its place back.
    sleep(MS).await;
    assert_eq!(Rc::strong_count(&answers), 1);
    drop(tasks);
}

#[test]
fn tasks_of_both_executors_talk_through_a_channel() {
    let report = run(async |_| {
        converse(20).await;
        Ok(())
    });
    assert!(report.halts <= 60, "{} halts", report.halts);
}

#[test]
fn several_domains_run_at_once() {
    let threads: Vec<_> = (1..=4)
        .map(|number| {
            std::thread::spawn(move || {
                run(async move |_| {
                    for _ in 0..3 {
                        converse(10 * number).await;
                    }
                    Ok(())
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[embassy_executor::task]
async fn busy(turns: Rc<Cell<u32>>) {
    loop {
        turns.set(turns.get() + 1);
        embassy_time::Timer::at(Instant::MIN).await;
    }
}

#[test]
fn a_task_that_is_always_ready_starves_nobody_and_ends_with_its_executor() {
    run(async |_| {
        let turns = Rc::new(Cell::new(0));
        let theirs = Rc::clone(&turns);
        let tasks = spawn(domu::embassy::run(|spawner| spawner.spawn(busy(theirs).unwrap())));
        sleep(MS).await;
        assert!(turns.get() > 1);
        drop(tasks);
        domu::executor::yield_now().await;
        let ran = turns.get();
        sleep(MS).await;
        assert_eq!(turns.get(), ran, "nobody polls it");
        Ok(())
    });
}

static FROM_OUTSIDE: Signal<CriticalSectionRawMutex, u32> = Signal::new();

#[embassy_executor::task]
async fn waits_for_outside(answer: Rc<Cell<u32>>) {
    answer.set(FROM_OUTSIDE.wait().await);
}

#[test]
fn a_task_is_woken_by_another_thread() {
    run(async |_| {
        let answer = Rc::new(Cell::new(0));
        let theirs = Rc::clone(&answer);
        let _tasks = spawn(domu::embassy::run(|spawner| spawner.spawn(waits_for_outside(theirs).unwrap())));
        sleep(MS).await;
        std::thread::spawn(|| FROM_OUTSIDE.signal(7)).join().unwrap();
        sleep(MS).await;
        assert_eq!(answer.get(), 7);
        Ok(())
    });
}

#[embassy_executor::task]
async fn spawned_by(spawner: Spawner, done: Rc<Cell<bool>>) {
    spawner.spawn(spawned(done).unwrap());
}

#[embassy_executor::task]
async fn spawned(done: Rc<Cell<bool>>) {
    done.set(true);
}

#[test]
fn main_may_be_embassys_and_tasks_start_tasks() {
    let done = Rc::new(Cell::new(false));
    let theirs = Rc::clone(&done);
    let report = Guest::new().run(async move |_| -> domu::Result {
        domu::embassy::run(|spawner| spawner.spawn(spawned_by(spawner, theirs).unwrap())).await
    });
    assert!(done.get());
    assert!(report.debug_text().contains("nothing is left that could wake it"), "{}", report.debug_text());
}

#[embassy_executor::task]
async fn never_polled() {}

#[test]
fn an_executor_of_somebody_elses_does_no_harm() {
    let word = ptr::without_provenance_mut(usize::MAX);
    let executor: &'static raw::Executor = Box::leak(Box::new(raw::Executor::new(word)));
    executor.spawner().spawn(never_polled().unwrap());
}

#[test]
fn critical_sections_nest_and_exclude_other_domains() {
    static NUMBER: critical_section::Mutex<Cell<u32>> = critical_section::Mutex::new(Cell::new(0));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                run(async |_| {
                    for _ in 0..100 {
                        critical_section::with(|section| {
                            let number = NUMBER.borrow(section);
                            let before = number.get();
                            // Its end does not end the outer one.
                            critical_section::with(|_| std::thread::yield_now());
                            std::thread::yield_now();
                            number.set(before + 1);
                        });
                    }
                    Ok(())
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    critical_section::with(|section| assert_eq!(NUMBER.borrow(section).get(), 400));
}
