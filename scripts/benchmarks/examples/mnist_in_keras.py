import math

import keras
from keras import layers

seed, epochs, batch_size = 0, 8, 128

(x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
x_train, x_test = (x[..., None].astype("float32") / 255 for x in (x_train, x_test))

keras.utils.set_random_seed(seed)
stack = [
    keras.Input((28, 28, 1)),
    layers.Conv2D(16, 5, strides=2, padding="same", use_bias=False),
    layers.BatchNormalization(),
    layers.ReLU(),
    layers.Conv2D(32, 3, padding="same", use_bias=False),
    layers.BatchNormalization(),
    layers.ReLU(),
    layers.MaxPooling2D(2),
    layers.Dropout(0.25),
    layers.GlobalAveragePooling2D(),
    layers.Dense(10),
]
model = keras.Sequential(stack)

steps = epochs * math.ceil(0.9 * len(x_train) / batch_size)
model.compile(
    optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.005, steps)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
stop = keras.callbacks.EarlyStopping("val_accuracy", patience=3, restore_best_weights=True)
history = model.fit(x_train, y_train, batch_size, epochs, validation_split=0.1, callbacks=[stop])
loss, accuracy = model.evaluate(x_test, y_test)
print(f"test accuracy {accuracy:.4f} after {len(history.history['val_accuracy'])} epochs")
