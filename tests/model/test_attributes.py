import numpy as np

from flmrec.model.attributes import AttributeEncoder


def test_values_get_a_column_each_and_numbers_spread_over_two_borders():
    genres = [["a", "b"], ["b"], None, ["a", "c"], ["a", "b"], ["b"]]
    years = [0.0, 10.0, None, 5.0, 10.0, 0.0]
    columns = {"genre": genres, "year": years}
    encoder = AttributeEncoder.fit(columns)
    assert encoder.values == {"genre": ["a", "b"]}  # c is too rare
    features = encoder.transform(columns, 6)
    assert features.shape == (6, encoder.width)
    assert features[:, :2].tolist() == [[1, 1], [0, 1], [0, 0], [1, 0], [1, 1], [0, 1]]
    borders = np.array(encoder.quantiles["year"])
    known = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(features[known, 2:] @ borders, [years[i] for i in known], atol=1e-5)
    assert not features[2].any()


def test_it_is_kept_as_json_and_takes_unknown_values_and_numbers_out_of_range():
    encoder = AttributeEncoder.fit({"size": [1.0, 2.0, 3.0], "kind": [["x"]] * 3})
    again = AttributeEncoder.from_json(encoder.to_json())
    new = {"size": [99.0, None, float("nan")], "kind": [["y"], ["x"], []]}
    np.testing.assert_array_equal(again.transform(new, 3), encoder.transform(new, 3))
    assert encoder.transform(new, 3)[0].tolist() == [0.0] + [0.0] * (encoder.width - 2) + [1.0]


def test_no_attributes_make_no_features():
    assert AttributeEncoder.fit({}).transform({}, 4).shape == (4, 0)
    assert AttributeEncoder.fit({"empty": [None, None]}).width == 0
