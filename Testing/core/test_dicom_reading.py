"""DICOM in: series found, sorted, given their geometry, or refused with a reason; every encoding reads the same."""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest

pytest.importorskip("pydicom", reason="needs the extra `dicom`")

from MTMed3DCore.dicom import scan
from MTMed3DCore.errors import InputRefused
from Testing.awkward_grids import GRIDS, oblique_affine
from Testing.dicom_series import PARAMETERS, Examination, write_enhanced, write_series

SHAPE = (36, 32, 12)  # JPEG 2000 takes no smaller image


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 4000, SHAPE)


def affines() -> dict[str, np.ndarray]:
    thick = np.diag([0.9, 0.9, 5.0, 1.0])
    flipped = np.diag([1.0, -1.0, -3.0, 1.0])  # columns of the image run the other way
    right_handed = oblique_affine() @ np.diag([1.0, -1.0, 1.0, 1.0])
    return {**GRIDS, "thick": thick, "flipped column": flipped, "oblique right-handed": right_handed}


def placed(volume) -> dict[tuple[float, ...], float]:
    """Every voxel's value by where it lies, which does not depend on the order of the axes."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.grid.shape), indexing="ij"), axis=-1)
    world = volume.grid.to_world(index).round(2).reshape(-1, 3) + 0.0
    return dict(zip(map(tuple, world.tolist()), volume.array.ravel().tolist(), strict=True))


@pytest.mark.parametrize("name", affines())
def test_every_voxel_lies_where_the_scanner_put_it(tmp_path, array, name):
    affine = affines()[name]
    write_series(tmp_path, array, affine, Examination())
    (series,) = scan(tmp_path)
    volume = series.read()
    from MTMed3DCore.geometry import Grid
    from MTMed3DCore.volume import Volume

    assert placed(volume) == placed(Volume(array.astype(np.float32), Grid(SHAPE, affine)))
    assert np.linalg.det(volume.grid.affine[:3, :3]) < 0
    assert series.stack.notices == ()


def test_an_enhanced_multiframe_file_reads_like_single_slices(tmp_path, array):
    affine = oblique_affine()
    write_series(tmp_path / "classic", array, affine, Examination(), **PARAMETERS["flair"])
    write_enhanced(tmp_path / "enhanced", array, affine, Examination(), **PARAMETERS["flair"])
    (classic,), (enhanced,) = scan(tmp_path / "classic"), scan(tmp_path / "enhanced")
    assert np.array_equal(classic.read().array, enhanced.read().array)
    assert enhanced.stack.grid.same_as(classic.stack.grid, 1e-6)
    for name in ("te_ms", "tr_ms", "ti_ms", "scanning_sequence", "patient_key"):
        assert getattr(enhanced.header, name) == getattr(classic.header, name)


@pytest.mark.parametrize(
    "syntax", ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "DeflatedExplicitVRLittleEndian"]
)
def test_lossless_compression_changes_no_voxel(tmp_path, array, syntax):
    files = write_series(tmp_path, array, GRIDS["axial"], Examination())
    before = scan(tmp_path)[0].read().array
    for file in files:
        dataset = pydicom.dcmread(file)
        if syntax.startswith("Deflated"):
            dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        else:
            dataset.compress(getattr(pydicom.uid, syntax))
        dataset.save_as(file)
        assert getattr(pydicom.uid, syntax) == pydicom.dcmread(file).file_meta.TransferSyntaxUID
    assert np.array_equal(scan(tmp_path)[0].read().array, before)


def test_jpeg_lossless_is_decoded(tmp_path, array):
    gdcm = pytest.importorskip("gdcm", reason="needs gdcm to write JPEG")
    files = write_series(tmp_path, array, GRIDS["axial"], Examination())
    before = scan(tmp_path)[0].read().array
    for file in files:
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
    assert np.array_equal(scan(tmp_path)[0].read().array, before)


def test_stored_values_are_scaled_as_the_header_says(tmp_path, array):
    write_series(tmp_path, array, GRIDS["axial"], Examination(), RescaleSlope=0.5, RescaleIntercept=-3)
    values = scan(tmp_path)[0].read().array
    assert values.min() == array.min() * 0.5 - 3
    assert values.max() == array.max() * 0.5 - 3


def test_a_missing_slice_is_refused_and_named(tmp_path, array):
    files = write_series(tmp_path, array, np.diag([1, 1, 3.0, 1]), Examination())
    files[5].unlink()
    with pytest.raises(InputRefused, match=rf"lacks 1 .*3.0 mm.*{files[4].name}.*{files[6].name}") as refusal:
        _ = scan(tmp_path)[0].stack
    assert refusal.value.code == "slices-missing"


def test_two_slices_at_one_position_are_refused_and_named(tmp_path, array):
    files = write_series(tmp_path, array, GRIDS["axial"], Examination(), positions=[*range(5), 4, *range(6, 12)])
    with pytest.raises(InputRefused, match="more than one slice at the same position") as refusal:
        _ = scan(tmp_path)[0].stack
    assert refusal.value.code == "slices-duplicate"
    assert files[4].name in refusal.value.text
    assert files[5].name in refusal.value.text


def test_copies_of_files_count_once(tmp_path, array):
    files = write_series(tmp_path / "a", array, GRIDS["axial"], Examination())
    (tmp_path / "b").mkdir()
    for file in files[:3]:
        shutil.copy(file, tmp_path / "b" / f"copy of {file.name}")
    (series,) = scan(tmp_path)
    assert (len(series.frames), series.copies) == (12, 3)


def test_uneven_slices_are_resampled_with_a_warning(tmp_path):
    """The values are ten times the position, so that they are known between the slices too."""
    places = [0, 1, 2, 3.2, 4, 5, 6, 7, 8, 9]
    array = np.broadcast_to(np.array(places) * 10, (6, 5, 10)).astype(int)
    write_series(tmp_path, array, np.diag([1, 1, 2.0, 1]), Examination(), positions=places)
    (series,) = scan(tmp_path)
    volume = series.read()
    assert [notice.code for notice in series.stack.notices] == ["slices-uneven"]
    spacing = volume.grid.affine[2, 2]
    assert spacing == pytest.approx(2.0)  # nine distances over the same extent
    assert volume.array[0, 0] == pytest.approx(np.arange(10) * 10, abs=1e-3)


def test_a_sheared_stack_is_refused(tmp_path, array):
    tilted = np.diag([1, 1, 3.0, 1])
    tilted[1, 2] = 0.6
    write_series(tmp_path, array, tilted, Examination())
    with pytest.raises(InputRefused, match=r"shifted by up to 6\.6 mm in their own plane") as refusal:
        _ = scan(tmp_path)[0].stack
    assert refusal.value.code == "geometry-shear"


def test_two_patients_in_one_folder_are_refused_without_naming_them(tmp_path, array):
    write_series(tmp_path / "a", array, GRIDS["axial"], Examination("SECRET1"))
    write_series(tmp_path / "b", array, GRIDS["axial"], Examination("SECRET2"))
    with pytest.raises(InputRefused, match="more than one patient") as refusal:
        scan(tmp_path)
    assert refusal.value.code == "several-patients"
    assert "SECRET" not in str(refusal.value)


def test_the_header_record_holds_no_name(tmp_path, array):
    write_series(tmp_path, array, GRIDS["axial"], Examination("SECRET1"))
    assert "SECRET" not in repr(scan(tmp_path)[0].header)


def test_a_series_of_two_echoes_becomes_two(tmp_path, array):
    for number, echo in ((1, 20), (2, 100)):
        write_series(
            tmp_path / str(number),
            array + number,
            GRIDS["axial"],
            Examination(study_uid="1.2", frame_uid="1.3"),
            number=4,
            SeriesInstanceUID="1.2.3",
            EchoTime=echo,
        )
    assert [(s.key, s.header.te_ms, len(s.frames)) for s in scan(tmp_path)] == [("4a", 100, 12), ("4b", 20, 12)]


def test_repeated_volumes_in_one_series_are_set_aside(tmp_path, array):
    for phase in range(3):
        write_series(tmp_path / str(phase), array, GRIDS["axial"], Examination(), SeriesInstanceUID="1.2.3")
    (series,) = scan(tmp_path)
    assert series.verdict.aside == "3 images at every position"


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "notes").write_text("nothing")
    with pytest.raises(InputRefused, match="holds no DICOM") as refusal:
        scan(tmp_path)
    assert refusal.value.code == "dicom-none"


def test_files_without_preamble_are_read(tmp_path, array):
    files = write_series(tmp_path, array, GRIDS["axial"], Examination())
    before = scan(tmp_path)[0].read().array
    for file in files:
        dataset = pydicom.dcmread(file)
        del dataset.file_meta
        dataset.preamble = None
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert file.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(scan(tmp_path)[0].read().array, before)


def test_a_truncated_file_is_refused_by_name(tmp_path, array):
    files = write_series(tmp_path, array, GRIDS["axial"], Examination())
    files[2].write_bytes(files[2].read_bytes()[:-100])
    with pytest.raises(InputRefused, match=files[2].name) as refusal:
        scan(tmp_path)[0].read()
    assert refusal.value.code == "file-damaged"
