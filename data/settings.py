"""Settings of the data: what a node reads, how clients share it, how batches are augmented."""

from dataclasses import dataclass

from superfednas.common.settings import setting

PARTITIONS = ("iid", "dirichlet", "balanced-dirichlet", "shards", "pathological", "natural")


@dataclass(frozen=True)
class DataSettings:
    """Settings of the data; each field is one flat kebab-case key.

    Nothing here is estimated from a node's own images: the split is fixed and the pixel constants
    are given, so every node with the same settings sees the same task.
    """

    dataset: str = setting(
        "digits",
        "digits, cifar10, cifar100, pathmnist, pneumoniamnist (MedMNIST), a path ending .npz, a "
        "folder of images, hf:NAME (Hugging Face), module:function (returns a "
        "superfednas.data.Dataset), or none (a server without data)",
    )
    data_cache: str = setting("~/.superfednas/data", "folder for downloaded data sets")
    partition: str = setting(
        "dirichlet", "how training images are divided among clients", choices=PARTITIONS
    )
    dirichlet_alpha: float = setting(
        1.0, "concentration of the Dirichlet partitions: small is uneven, large is even", above=0
    )
    shards_per_client: int = setting(2, "number of label-sorted shards per client (shards)", low=1)
    classes_per_client: int = setting(2, "number of classes per client (pathological)", low=1)
    min_partition_size: int = setting(
        10, "fewest training images a client may get (natural clients are as they are)", low=1
    )
    natural_id: str = setting(
        "client",
        "natural clients: npz array '<natural-id>_train' (and _val, _test), or a column of "
        "an hf: data set",
    )
    validation_share: float = setting(
        0.1,
        "share of the images held out if a source has no validation split",
        above=0,
        high=0.5,
    )
    train_images: int = setting(
        0, "keep a stratified sample of this many training images; 0 keeps all", low=0
    )
    resize: int = setting(
        0,
        "side in pixels: shorter side resized, centre cropped; 0 leaves images as they are",
        low=0,
    )
    augment: str = setting(
        "auto",
        "auto (crop:4,flip,cutout:16 for CIFAR and any 32x32 colour images, else none), none, or a "
        "comma list of crop:PADDING, flip, cutout:SIDE",
    )
    pixel_mean: str = setting(
        "", "comma list, one mean a channel for pixels in [0, 1]; empty takes the data set's own"
    )
    pixel_std: str = setting(
        "", "comma list, one s.d. a channel for pixels in [0, 1]; empty takes the data set's own"
    )
