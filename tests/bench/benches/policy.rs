//! The cost of one decision: `cargo bench -p bench --bench policy`. It is to grow with the policies of the pod in question,
//! and with nothing else.

use bench::World;
use criterion::{Bencher, BenchmarkId, Criterion, criterion_group, criterion_main};

fn decide(bencher: &mut Bencher<'_>, world: &World) {
    assert!(world.decide().verdict.is_ok());
    bencher.iter(|| world.decide());
}

fn policies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policies of other pods");
    for count in [10, 1_000, 10_000] {
        let world = World::with_policies_elsewhere(count);
        group.bench_with_input(BenchmarkId::from_parameter(count), &world, decide);
    }
    group.finish();
    let mut group = criterion.benchmark_group("policies of the pod");
    for count in [10, 1_000, 10_000] {
        let world = World::with_policies_here(count);
        group.bench_with_input(BenchmarkId::from_parameter(count), &world, decide);
    }
    group.finish();
}

fn principals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("principals in a policy");
    for count in [10, 1_000, 100_000] {
        let world = World::with_principals(count);
        group.bench_with_input(BenchmarkId::from_parameter(count), &world, decide);
    }
    group.finish();
}

criterion_group!(benches, policies, principals);
criterion_main!(benches);
