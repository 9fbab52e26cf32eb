r"""Zero-shot retrieval on Flickr30K's 1K and COCO's 5K test pictures, FILIP's two sets, by Karpathy's splits.

    filip eval --workdir=runs/filip_large --config=configs/eval/retrieval.py --config.root=/data/retrieval

`root` holds dataset_flickr30k.json and dataset_coco.json (https://cs.stanford.edu/people/karpathy/deepimagesent), the folder
flickr30k-images, and COCO's val2014. `:flickr30k` or `:coco` behind the file takes one set; `:clip_benchmark` takes both as
CLIP_benchmark publishes them in tars: its folders wds_flickr30k and wds_mscoco_captions below `root`, downloaded whole.

Five captions of each picture are taken, 25,000 of COCO's 25,010, as the 5K set is mostly counted. The paper puts prompts around
them, which are not published; recalled, of low confidence: "a good photo of the {}. I hate it." on Flickr30K and "a good photo
of {}. I hate it." on COCO for image to text, "a good photo of {}." on Flickr30K for text to image. --config.evals.coco.prompt=…
sets one, for both ways. --config.evals.coco.positives=eccv_caption adds ECCV Caption's numbers (extra `eval`).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

SETS = {  # test pictures, Karpathy's file, the folder of its pictures, CLIP_benchmark's folder
    "flickr30k": (1_000, "dataset_flickr30k.json", "flickr30k-images", "wds_flickr30k"),
    "coco": (5_000, "dataset_coco.json", "", "wds_mscoco_captions"),
}
VARIANTS = ("all", *SETS, "clip_benchmark")


def get_config(variant: str = "all") -> ConfigDict:
    root = FieldReference("retrieval")

    def retrieve(examples, file, images, tars):
        source = dict(name="annotations", path=root + f"/{file}", images=root + f"/{images}", split="test")
        if variant == "clip_benchmark":
            source = dict(name="webdataset", path=root + f"/{tars}/test", lines=True)
        return dict(kind="retrieval", source=source, examples=examples, captions=5, prompt="{}", positives="")

    chosen = {variant: SETS[variant]} if variant in SETS else SETS
    return ConfigDict(dict(root=root, evals={name: retrieve(*places) for name, places in chosen.items()}))
