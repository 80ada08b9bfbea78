"""Compare NetClassifier and NetRegressor with scikit-learn's MLPs on three data sets.

    python -m benchmarks.scikit_learn

Both train the same architecture, a hidden layer of 100 units with ReLU, by Adam with
the same rate, batch size and epochs, without weight decay, on the same standardized
data. In each round they fit and predict in turns, with the round as the seed. Scores
are means over the rounds, on a quarter of the data that is held out. Times are medians
of one thread's processor time, which stops while other programs use the core, and a
ratio is the median of the ratios of the rounds. A ratio below 1 says that this library
is faster.
"""

import argparse
import os
import statistics
import time
import warnings

PREDICTIONS = 20  # calls of predict that are timed together
PARTS = ("fit", "predict")


def programs(is_classifier, epochs, seed):
    """Return new estimators, by name: ours and that of scikit-learn."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    from agnostic_nn.sklearn import NetClassifier, NetRegressor

    ours = NetClassifier if is_classifier else NetRegressor
    theirs = MLPClassifier if is_classifier else MLPRegressor
    fixed = {"alpha": 0.0, "tol": 0.0, "n_iter_no_change": epochs + 1}
    return {
        "ours": ours((100,), epochs=epochs, random_state=seed),
        "theirs": theirs(
            hidden_layer_sizes=(100,), max_iter=epochs, random_state=seed, **fixed
        ),
    }


def data(name, dtype):
    """Return standardized training and test data, and whether y holds classes."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    is_classifier = y.dtype.kind == "i"
    x, x_test, y, y_test = train_test_split(x, y, random_state=0)
    scaler = StandardScaler().fit(x)
    x, x_test = (
        scaler.transform(x).astype(dtype),
        scaler.transform(x_test).astype(dtype),
    )
    if not is_classifier:
        mean, scale = y.mean(), y.std()
        y, y_test = (y - mean) / scale, (y_test - mean) / scale
    return (x, y), (x_test, y_test), is_classifier


def timed(function):
    begin = time.process_time()
    function()
    return time.process_time() - begin


def measure(name, dtype, epochs, rounds):
    """Return scores and seconds by program, and by part for the seconds."""
    (x, y), (x_test, y_test), is_classifier = data(name, dtype)
    scores = {"ours": [], "theirs": []}
    seconds = {part: {"ours": [], "theirs": []} for part in PARTS}
    for seed in range(-1, rounds):  # the first round only warms up
        for program, estimator in programs(is_classifier, epochs, max(0, seed)).items():

            def predict(estimator=estimator):
                for _ in range(PREDICTIONS):
                    estimator.predict(x_test)

            fit = timed(lambda estimator=estimator: estimator.fit(x, y))
            predict()
            each = timed(predict) / PREDICTIONS
            if seed >= 0:
                scores[program].append(estimator.score(x_test, y_test))
                seconds["fit"][program].append(fit)
                seconds["predict"][program].append(each)
    return scores, seconds


def row(name, dtype, scores, seconds):
    """Return a row of the table."""
    cells = [name, dtype]
    for program in ("ours", "theirs"):
        cells.append(f"{statistics.mean(scores[program]):.3f}")
    for part in PARTS:
        ours, theirs = seconds[part]["ours"], seconds[part]["theirs"]
        for each in (ours, theirs):
            cells.append(f"{1e3 * statistics.median(each):.3g} ms")
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        cells.append(f"{statistics.median(ratios):.2f}")
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument(
        "--data", nargs="+", default=["digits", "breast_cancer", "diabetes"]
    )
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    warnings.simplefilter("ignore")  # the MLPs warn that they have not converged
    columns = ["data", "dtype", "score", "MLP's"]
    for part in PARTS:
        columns += [part, "MLP's", "ratio"]
    print(f"| {' | '.join(columns)} |")
    print(f"| {' | '.join(['---'] * 2 + ['---:'] * (len(columns) - 2))} |")
    for name in options.data:
        for dtype in options.dtypes:
            results = measure(name, dtype, options.epochs, options.rounds)
            print(row(name, dtype, *results), flush=True)


if __name__ == "__main__":
    main()
