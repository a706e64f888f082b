"""UCF-101: class folders of avi files, with the official split lists 01-03 and the class index.

The lists (`trainlist01.txt`, `testlist01.txt`, `classInd.txt`, ...) lie in the folder itself, in `ucfTrainTestlist`
inside or beside it, or where the settings say.
"""

from pathlib import Path

from contentmotion.data.records import ColumnRecords, Layout, Listing, Place

LIST_FOLDERS = ("", "ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "../ucfTrainTestlist")
VIDEO_FOLDERS = ("", "UCF-101", "videos")
PREFIXES = ("", "ucf101_")  # of the lists' file names


def _find_lists(place: Place) -> Path | None:
    """The folder with UCF-101's lists; None where there is none."""
    for folder in ((place.lists or place.path) / name for name in LIST_FOLDERS):
        if any((folder / f"{prefix}classInd.txt").is_file() for prefix in PREFIXES):
            return folder
    return None


def _read(place: Place) -> Listing:
    """The videos of an official split, train and test, labelled by the class index (from 0)."""
    root, lists = place.folder, _find_lists(place)
    if lists is None:
        raise UCF101.missing(place)
    pairs = [line.split() for line in _lines(lists, "classInd.txt")]
    if any(len(pair) != 2 for pair in pairs) or [pair[0] for pair in pairs] != [str(k + 1) for k in range(len(pairs))]:
        raise ValueError(f"{lists}: classInd.txt must number the classes from 1, one `number name` a line")
    class_names = tuple(name for _, name in pairs)
    labels = {name: k for k, name in enumerate(class_names)}
    folder = next((name for name in VIDEO_FOLDERS if (root / name / class_names[0]).is_dir()), "")
    records, problems = ColumnRecords(root / folder), []
    for split in ("train", "test"):
        name = f"{split}list{place.split_number:02d}.txt"
        for line in _lines(lists, name):
            file = line.rpartition(" ")[0] if split == "train" else line  # the train lists end in the class number
            class_name = file.partition("/")[0]
            if class_name not in labels:
                problems.append(f"{name}: {line}: no class {class_name!r} in classInd.txt")
                continue
            records.append(file, label=labels[class_name], split=split)
    return Listing(records, class_names, problems)


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of one of the lists that are not empty."""
    file = next((folder / f"{p}{name}" for p in PREFIXES if (folder / f"{p}{name}").is_file()), folder / name)
    return [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]


UCF101 = Layout(
    "ucf101",
    lambda place: _find_lists(place) is not None,
    _read,
    "classInd.txt, trainlist01.txt, ... (also in ucfTrainTestlist)",
)
