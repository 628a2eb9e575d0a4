//! The results as JUnit XML, for CI.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::results::{Ran, Results};

/// Renders the results: one test suite a file.
pub(super) fn render(results: &Results) -> anyhow::Result<String> {
    let mut report = Report::new("culvert policy test");
    for file in results.by_file() {
        let mut suite = TestSuite::new(file[0].file.as_str());
        suite.add_test_cases(file.iter().map(case));
        report.add_test_suite(suite);
    }
    Ok(report.to_string()?)
}

fn case(ran: &Ran) -> TestCase {
    let mut status = TestCaseStatus::success();
    if let Some(failure) = &ran.failure {
        status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_message(failure.mismatches.join("; "));
        status.set_description(failure.explanation.as_str());
    }
    let mut case = TestCase::new(ran.name.as_str(), status);
    case.set_classname(ran.file.as_str());
    case.extra.insert("line".into(), ran.line.to_string().into());
    case
}
