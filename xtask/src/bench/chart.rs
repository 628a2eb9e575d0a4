//! The ratios to plain TCP as a picture.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{load::Load, results::Results, stage::Path};

/// Draws the ratio of each load over each path, with its interval.
pub(super) fn draw(results: &Results) -> Result<String> {
    let comparisons = Results::comparisons(&results.rounds);
    let bars: Vec<_> = Load::ALL
        .into_iter()
        .flat_map(|load| PATHS.into_iter().map(move |(path, colour)| (load, path, colour)))
        .filter_map(|(load, path, colour)| {
            let found = comparisons.iter().find(|it| it.load == load && it.path == path)?;
            Some((load, path, colour, found.ratio?))
        })
        .collect();
    let mut svg = String::new();
    {
        let height = 60 + 22 * u32::try_from(bars.len())?;
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(440)
            .build_cartesian_2d(0.0..1.1, 0.0..bars.len() as f64)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_desc("ratio to plain TCP in the same round, with its interval of 95 %")
            .draw()
            .map_err(drawing)?;
        for (number, (load, path, colour, ratio)) in bars.iter().rev().enumerate() {
            let (bottom, top) = (number as f64 + 0.15, number as f64 + 0.85);
            let middle = f64::midpoint(bottom, top);
            let value = ratio.value.min(1.1);
            let bar = Rectangle::new([(0.0, bottom), (value, top)], colour.filled());
            let reach =
                PathElement::new([(ratio.low.max(0.0), middle), (ratio.high.min(1.1), middle)], BLACK);
            chart.draw_series([bar]).map_err(drawing)?;
            chart.draw_series([reach]).map_err(drawing)?;
            let (x, y) = chart.backend_coord(&(0.0, middle));
            let style = ("sans-serif", 13).into_font().color(&BLACK);
            let text = format!("{}, {}: {:.2}", path.name(), load.name(), ratio.value);
            area.draw_text(&text, &style, (x - 435, y - 7)).map_err(drawing)?;
        }
        area.present().map_err(drawing)?;
    }
    Ok(svg)
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing the chart: {error}")
}

const WIDTH: u32 = 1000;
/// What is drawn, in colours that differ also without colour.
const PATHS: [(Path, RGBColor); 4] = [
    (Path::Across, RGBColor(31, 119, 180)),
    (Path::Near, RGBColor(255, 187, 120)),
    (Path::Native, RGBColor(148, 103, 189)),
    (Path::Outward, RGBColor(152, 223, 138)),
];
